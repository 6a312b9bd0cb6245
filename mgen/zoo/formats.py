"""The official formats that `mgen convert` reads, each with a line for help texts; how they are read: mgen.convert.formats.

A list of its own, so that help and errors about a name need none of the readers, whose import takes seconds.
"""

ABOUT = {
    "diffusers-dc-ae": "folder of diffusers' AutoencoderDC, e.g. dc-ae-f32c32-in-1.0-diffusers (f32, 32 channels)",
    "diffusers-vae": "folder of diffusers' AutoencoderKL, e.g. sd-vae-ft-mse (f8, 4 channels: tokens of 2×2 patches)",
    "emigm": "eMIGM XS/S/B/L/H, eMIGM_{xsmall,…,huge}_{256,512}_checkpoint.pth (EMA weights; --raw for the others)",
    "emigm-ema": "the same with the average of the vector that is mask token and null class, which official results do not use",
    "enat": "ENAT-L, nnet_ema.pth and nnet_ema_512.pth",
    "halton": "Halton-MaskGIT, ImageNet_{256,384}_{tiny,small,base,large}.pth",
    "himar": "Hi-MAR-B/L/H, checkpoint-last.pth (EMA weights; --raw for the others)",
    "hita": "tokenizers of Hita, hita-tok.pt and hita-ultra.pt (EMA weights; --raw for the others)",
    "hita-gpt": "generators of Hita, GPT-{B,L,XL,XXL,2B}-{50,100,250,300}e.pt (EMA weights; --raw for the others)",
    "kl16": "kl16.ckpt of MAR, its safetensors mirror, and other KL autoencoders with LDM's keys",
    "ldetok": "tokenizers of l-DeTok, detok-BB-….pth (EMA weights; --raw for the others), with stats=stats.pt",
    "ldetok-mar": "MAR-B/L trained on l-DeTok, mar_base.pth and mar_large.pth (EMA weights; --raw for the others)",
    "llamagen": "generators of LlamaGen, c2i_{B,L,XL,XXL,3B}_{256,384}.pt",
    "llamagen-vq": "tokenizers of LlamaGen and Halton-MaskGIT, vq_ds{16,8}_c2i.pt (EMA weights if there are any; --raw for the others)",
    "mage": "MAGE-B/L pre-trained, mage-vitb-1600.pth; its VQGAN is in the same file",
    "mar": "MAR-B/L/H, checkpoint-last.pth (EMA weights; --raw for the others) or a flat safetensors mirror",
    "maskgit": "AutoNAT / MaskGIT-r U-ViT, nnet_ema.pth",
    "maskgit-jax": "google-research/maskgit transformer, maskgit_imagenet256_checkpoint (flax msgpack)",
    "maskgit-vqgan": "VQGAN in taming-style keys (vqgan_jax_strongaug.ckpt), open-muse keys or flax msgpack",
    "rar": "RAR-B/L/XL/XXL, rar_{b,l,xl,xxl}.bin",
    "titok-generator": "generators of TiTok, folders generator_titok_{l32,b64,s128}_imagenet or their .bin",
    "titok-vae": "tokenizers of TiTok with vectors, tokenizer_titok_{ll32,bl64,bl128}_vae_c16_imagenet",
    "titok-vq": "tokenizers of TiTok with ids, tokenizer_titok_{l32,b64,s128}_imagenet and tokenizer_titok_…_vq8k_imagenet",
    "tokenbridge": "TokenBridge-L/H, checkpoint-last.pth (EMA weights; --raw for the others)",
    "xar": "xAR-B/L/H, xAR-{B,L,H}.pth (a bare state dict) or checkpoint-last.pth (EMA weights; --raw for the others)",
}
