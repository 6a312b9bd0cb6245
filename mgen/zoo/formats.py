"""The official formats that `mgen convert` reads, each with a line for help texts; how they are read: mgen.convert.formats.

A list of its own, so that help and errors about a name need none of the readers, whose import takes seconds.
"""

ABOUT = {
    "diffusers-vae": "folder of diffusers' AutoencoderKL, e.g. sd-vae-ft-mse (f8, 4 channels: tokens of 2×2 patches)",
    "enat": "ENAT-L, nnet_ema.pth and nnet_ema_512.pth",
    "halton": "Halton-MaskGIT, ImageNet_{256,384}_{tiny,small,base,large}.pth",
    "himar": "Hi-MAR-B/L/H, checkpoint-last.pth (EMA weights; --raw for the others)",
    "hita": "tokenizers of Hita, hita-tok.pt and hita-ultra.pt (EMA weights; --raw for the others)",
    "hita-gpt": "generators of Hita, GPT-{B,L,XL,XXL,2B}-{50,100,250,300}e.pt (EMA weights; --raw for the others)",
    "kl16": "kl16.ckpt of MAR, its safetensors mirror, and other KL autoencoders with LDM's keys",
    "llamagen": "generators of LlamaGen, c2i_{B,L,XL,XXL,3B}_{256,384}.pt",
    "llamagen-vq": "tokenizers of LlamaGen and Halton-MaskGIT, vq_ds{16,8}_c2i.pt (EMA weights if there are any; --raw for the others)",
    "mage": "MAGE-B/L pre-trained, mage-vitb-1600.pth; its VQGAN is in the same file",
    "mar": "MAR-B/L/H, checkpoint-last.pth (EMA weights; --raw for the others) or a flat safetensors mirror",
    "maskgit": "AutoNAT / MaskGIT-r U-ViT, nnet_ema.pth",
    "maskgit-jax": "google-research/maskgit transformer, maskgit_imagenet256_checkpoint (flax msgpack)",
    "maskgit-vqgan": "VQGAN in taming-style keys (vqgan_jax_strongaug.ckpt), open-muse keys or flax msgpack",
    "rar": "RAR-B/L/XL/XXL, rar_{b,l,xl,xxl}.bin",
    "tokenbridge": "TokenBridge-L/H, checkpoint-last.pth (EMA weights; --raw for the others)",
}
