#!/usr/bin/env python3
"""Writes the numbers our engine is held against, with Hugging Face transformers on the CPU.

    make_goldens.py real MODEL.gguf     -> engine/testdata/smollm2-135m-instruct.json
    make_goldens.py tiny                -> engine/testdata/tiny.json

The model in f32 gets the exactly dequantised weights of the file, so what is recorded is the file's meaning, with no
quantised activations in between. The tiny models have no file: weights follow from a counter-based generator that
`models/tests/tiny/mod.rs` implements too, so only their logprobs are committed.

Needs numpy, torch, transformers and gguf. How far llama.cpp is from the first: `cargo xtask bench engine --fidelity`.
"""
import hashlib
import json
import pathlib
import sys

import numpy as np
import torch

DATA = pathlib.Path(__file__).resolve().parent.parent / "testdata"
PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three fruits.",
    "What is 12 times 12?",
    "Explain what a compiler does.",
    "Who wrote Romeo and Juliet?",
    "Translate 'good morning' into Spanish.",
    "Give me a name for a cat.",
    "Why is the sky blue?",
    "Write a haiku about rain.",
]
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
TOKENS = 512
NEW = 64


def logprobs(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def teacher(model, ids, top):
    """Of each of the tokens but the last: the logprob of the one that follows, and the likeliest."""
    lp = logprobs(model, ids)[:-1]
    target = lp.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    best = lp.topk(top, -1)
    return {
        "ids": ids,
        "target": [round(x, 5) for x in target.tolist()],
        "top_ids": best.indices.tolist(),
        "top": [[round(x, 5) for x in row] for row in best.values.tolist()],
    }


def greedy(model, ids, new):
    out, past, feed, margins = [], None, ids, []
    for _ in range(new):
        with torch.no_grad():
            r = model(torch.tensor([feed]), past_key_values=past, use_cache=True)
        past = r.past_key_values
        best = r.logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        feed = [best.indices[0].item()]
        out += feed
    return out, round(min(margins), 4)


# ---- the real model -------------------------------------------------------------------------------------------------


def read_gguf(path):
    import gguf

    reader = gguf.GGUFReader(path)
    text = lambda f: [str(bytes(f.parts[i]), "utf-8") for i in f.data]
    weights = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(t.shape[::-1])
        for t in reader.tensors
    }
    return reader.fields, weights, text


def unpermute(w, heads):
    """GGUF keeps rows that rotate together next to each other; transformers keeps them half a head apart."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def real_model(path):
    from transformers import LlamaConfig, LlamaForCausalLM

    fields, w, text = read_gguf(path)
    get = lambda key: fields["llama." + key].contents()
    heads, kv = get("attention.head_count"), get("attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=len(w["token_embd.weight"]),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        tie_word_embeddings="output.weight" not in w,
    )
    model = LlamaForCausalLM(config).float().eval()
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {"model.embed_tokens.weight": w["token_embd.weight"], "model.norm.weight": w["output_norm.weight"],
             "lm_head.weight": w.get("output.weight", w["token_embd.weight"])}
    for name, value in w.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):
                value = unpermute(value, heads if part == "attn_q" else kv)
            state[f"model.layers.{layer}.{names[part]}.weight"] = value
    missing = model.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    return model, tokenizer(fields, text)


def tokenizer(fields, text):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, merges = text(fields["tokenizer.ggml.tokens"]), text(fields["tokenizer.ggml.merges"])
    types = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ", 1)) for m in merges])
    tk = Tokenizer(bpe)
    # What SmolLM's own tokenizer.json has: digits one by one, then GPT-2's splitting.
    tk.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tk.decoder = decoders.ByteLevel()
    tk.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, types) if k == 3])
    return tk


def real(path):
    model, tk = real_model(path)
    passage = tk.encode((DATA / "passage.txt").read_text()).ids
    assert len(passage) > TOKENS, len(passage)
    prompts = []
    for prompt in PROMPTS:
        ids = tk.encode(CHAT.format(prompt)).ids
        out, margin = greedy(model, ids, NEW)
        stop = out.index(2) if 2 in out else NEW
        answer = tk.decode(out[:stop])
        print(f"{prompt!r} -> {answer!r} (smallest margin {margin})")
        prompts.append({"prompt": prompt, "ids": ids, "greedy": out, "answer": answer, "smallest_margin": margin})
    golden = {
        "made_by": "transformers, f32, exactly dequantised weights",
        "sha256": hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest(),
        "passage": teacher(model, passage[: TOKENS + 1], 5),
        "prompts": prompts,
    }
    (DATA / "smollm2-135m-instruct.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


# ---- tiny models ----------------------------------------------------------------------------------------------------

MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def stream(name, n):
    """`n` 64-bit words that belong to a tensor's name (splitmix64 on a counter, seeded by FNV-1a)."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def unit(words):
    """Uniform in [-1, 1), 24 bits."""
    return (words >> np.uint64(40)).astype(np.float64) / 2**23 - 1.0


def to_bf16(x):
    return torch.tensor(x).bfloat16().float().numpy()


def tensor(name, shape, ty, scale):
    n = int(np.prod(shape))
    words = stream(name, n)
    if ty in ("f32", "f16", "bf16"):
        x = (unit(words) * scale).astype(np.float32)
        x = {"f32": lambda: x, "f16": lambda: x.astype(np.float16).astype(np.float32), "bf16": lambda: to_bf16(x)}[ty]()
        return x.reshape(shape)
    head = unit(stream(name + ".d", n // 32)) * 0.25 + 1.0
    steps = {"q8_0": 127.0, "q4_0": 8.0, "q4_1": 7.5}[ty]
    d = (head * scale / steps).astype(np.float32).astype(np.float16).astype(np.float32)
    d = np.repeat(d, 32)
    if ty == "q8_0":
        return (d * np.maximum((words >> np.uint64(56)).astype(np.int64) - 128, -127).astype(np.float32)).reshape(shape)
    q = (words >> np.uint64(60)).astype(np.float32)
    if ty == "q4_0":
        return (d * (q - 8.0)).reshape(shape)
    m = (-head * scale).astype(np.float32).astype(np.float16).astype(np.float32)
    return (d * q + np.repeat(m, 32)).astype(np.float32).reshape(shape)


SHAPE = dict(vocab_size=384, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, head_dim=32, max_position_embeddings=512, rms_norm_eps=1e-5)
TINY = [("llama", "f32"), ("llama", "f16"), ("llama", "bf16"), ("llama", "q8_0"), ("llama", "q4_0"), ("llama", "q4_1"),
        ("qwen2", "bf16"), ("qwen2", "q8_0"), ("qwen3", "bf16"), ("qwen3", "q4_0")]


def tiny_model(arch, ty):
    import transformers as tf

    cls = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[arch]
    theta = {"rope_type": "default", "rope_theta": 10000.0}
    config = getattr(tf, cls + "Config")(**SHAPE, rope_theta=10000.0, rope_parameters=theta,
                                         tie_word_embeddings=arch != "llama")
    config.head_dim = SHAPE["head_dim"]
    model = getattr(tf, cls + "ForCausalLM")(config).float().eval()
    state = {}
    for name, value in model.state_dict().items():
        shape = tuple(value.shape)
        if len(shape) == 1:
            x = tensor(name, shape, "f32", 0.3)
            state[name] = torch.tensor(x if name.endswith("bias") else x + np.float32(1.0))
            continue
        # Sharp attention and wide logits, so that mistakes show.
        scale = 0.35 if ".q_proj" in name or ".k_proj" in name else 0.15
        if name == "lm_head.weight" and arch != "llama":
            state[name] = state["model.embed_tokens.weight"]
        else:
            state[name] = torch.tensor(tensor(name, shape, ty, 0.5 if "embed" in name or "lm_head" in name else scale))
    model.load_state_dict(state, strict=True)
    return model


def tiny():
    golden = []
    for arch, ty in TINY:
        ids = [int(x) for x in stream(f"ids.{arch}", 321) % np.uint64(SHAPE["vocab_size"])]
        golden.append({"arch": arch, "type": ty, **teacher(tiny_model(arch, ty), ids, 2)})
        print(arch, ty, golden[-1]["target"][:3], golden[-1]["top"][5])
    text = "[\n" + ",\n".join(json.dumps(g, separators=(",", ":")) for g in golden) + "\n]\n"
    (DATA / "tiny.json").write_text(text)


if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.manual_seed(0)
    match sys.argv[1:]:
        case ["real", path]:
            real(path)
        case ["tiny"]:
            tiny()
        case _:
            sys.exit(__doc__)
