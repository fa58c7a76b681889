#!/usr/bin/env python3
"""llama.cpp under the same stopwatch as our engine: the peer of `cargo xtask bench engine --vs llama.cpp`.

    bench_llama_cpp.py MODEL.gguf THREADS

Answers the lines that engine/models/examples/bench.rs describes, in the same way. Settings are the library's own
but for threads, sequences and room. Needs llama-cpp-python, which brings numpy.
"""
import ctypes
import functools
import hashlib
import json
import sys
import time

import llama_cpp as lc
import numpy as np

BATCH = 512


class Context:
    """Some sequences of equal length, which every step finds as it left them."""

    def __init__(self, model, threads, sequences, depth):
        params = lc.llama_context_default_params()
        params.n_ctx = sequences * (depth + BATCH)
        params.n_batch = BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        self.ctx = lc.llama_init_from_model(model, params) or sys.exit("llama.cpp made no context")
        self.memory = lc.llama_get_memory(self.ctx)
        self.batch = lc.llama_batch_init(BATCH, 0, 1)
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        self.sequences, self.depth = sequences, depth
        for sequence in range(sequences if depth else 0):
            self.put([sequence], 0, depth)
            self.decode()

    def put(self, sequences, position, tokens, ids=None, all_logits=False):
        """The tokens of the next step, the same for each sequence."""
        b = self.batch
        b.n_tokens = len(sequences) * tokens
        for i in range(b.n_tokens):
            at = position + i % tokens
            b.token[i] = ids[at] if ids else at * 7919 % 40_000 % self.vocab
            b.pos[i] = at
            b.n_seq_id[i] = 1
            b.seq_id[i][0] = sequences[i // tokens]
            b.logits[i] = all_logits or i % tokens == tokens - 1

    def decode(self):
        if (code := lc.llama_decode(self.ctx, self.batch)) != 0:
            sys.exit(f"llama_decode failed: {code}")

    def repeat(self, tokens, seconds):
        self.put(range(self.sequences), self.depth, tokens)
        steps, wall, cpu = 0, time.perf_counter(), time.process_time()
        while steps == 0 or time.perf_counter() - wall < seconds:
            for sequence in range(self.sequences):
                lc.llama_memory_seq_rm(self.memory, sequence, self.depth, -1)
            self.decode()
            steps += 1
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"tokens": steps * self.sequences * tokens, "wall_s": wall, "cpu_s": cpu}


def fidelity(context, model, golden):
    golden = json.load(open(golden))
    if hashlib.sha256(open(model, "rb").read()).hexdigest() != golden["sha256"]:
        sys.exit(f"{model} is not the file that the golden was made from")
    passage = golden["passage"]
    ids = passage["ids"]
    n = len(ids) - 1
    lc.llama_memory_clear(context.memory, False)
    context.put([0], 0, n, ids, all_logits=True)
    context.decode()
    logits = np.ctypeslib.as_array(lc.llama_get_logits(context.ctx), (n, context.vocab))
    off, off_top = [], []
    for i, row in enumerate(logits):
        row = row.astype(np.float64)
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        off.append(abs(row[ids[i + 1]] - passage["target"][i]))
        off_top.append(np.abs(row[passage["top_ids"][i]] - passage["top"][i]).mean())
    return {"tokens": n, "mean_abs_dlogprob": np.mean(off), "mean_abs_dlogprob_top": np.mean(off_top)}


def main(path, threads):
    start = time.perf_counter()
    quiet = lc.llama_log_callback(lambda *_: None)  # llama.cpp keeps a bare pointer to it
    lc.llama_log_set(quiet, ctypes.c_void_p())
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    load_s = time.perf_counter() - start
    features = lc.llama_print_system_info().decode().strip()
    print(json.dumps({"load_s": load_s, "version": lc.__version__, "features": features}), flush=True)

    @functools.cache
    def context(sequences, depth):
        return Context(model, int(threads), sequences, depth)

    for line in sys.stdin:
        match line.split():
            case ["decode", streams, depth, seconds]:
                answer = context(int(streams), int(depth)).repeat(1, float(seconds))
            case ["prefill", tokens, seconds]:
                answer = context(1, 0).repeat(int(tokens), float(seconds))
            case ["fidelity", golden]:
                answer = fidelity(context(1, 0), path, golden)
            case _:
                sys.exit(f"not a measurement: {line}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
