#!/bin/bash
# Train on several machines with Slurm; arguments are those of `mgen train`:
#
#     sbatch --nodes 2 tools/slurm_train.sh --config FILE parallel=hsdp output=/shared/runs/NAME
#
# Environment, code, data, caches and the output folder must be on storage that all machines see. Two minutes before the time limit, or when
# the job is preempted, the run writes a checkpoint and the job goes back into the queue; after the failure of a machine Slurm puts it there.
# Started again, the run resumes from its newest checkpoint. `scancel` ends it.
#
# Settings, by the environment or with `sbatch --export=ALL,NAME=VALUE`: PYTHON, the interpreter (default python); MOST_RESTARTS (default 100).
#
#SBATCH --job-name=mgen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:TERM@120

set -u
python="${PYTHON:-python}"
processes="${SLURM_GPUS_ON_NODE:-1}" # of each machine
head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" || exit
restarts="${SLURM_RESTART_COUNT:-0}"
if (( restarts > ${MOST_RESTARTS:-100} )); then
    echo "slurm_train.sh: the job was restarted $restarts times, more than MOST_RESTARTS=${MOST_RESTARTS:-100}: not again" >&2
    exit 1
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(( ${SLURM_CPUS_PER_TASK:-1} / processes > 0 ? ${SLURM_CPUS_PER_TASK:-1} / processes : 1 ))}"

# One launcher per machine; the first machine is where they meet. A port of the job's own lets two jobs share machines.
srun --ntasks "$SLURM_NNODES" --ntasks-per-node 1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
    "$python" -m torch.distributed.run --nnodes "$SLURM_NNODES" --nproc-per-node "$processes" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:$(( 20000 + SLURM_JOB_ID % 12000 ))" \
    -m mgen.train "$@" processes="$(( SLURM_NNODES * processes ))" &
step=$!
stopping=""
trap 'stopping=1; kill -TERM "$step"' TERM # srun passes it on; mgen finishes the step and writes a checkpoint
wait "$step"
status=$?
if [[ -n "$stopping" ]]; then
    trap "" TERM
    wait "$step"
    # A job that was canceled may get the signal too, and stays canceled.
    [[ "$(scontrol show job "$SLURM_JOB_ID")" == *JobState=CANCELLED* ]] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
