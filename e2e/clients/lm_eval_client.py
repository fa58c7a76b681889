"""lm-evaluation-harness: the log-likelihood of each next word of a text, asked from the server, and held
against what Hugging Face transformers gives on the same weights (engine/testdata).

Further environment: STOWAGE_MODEL_FILE, the GGUF file that is served, for its vocabulary;
STOWAGE_REFERENCE, the file with transformers' figures.
"""

import json
import os
import tempfile

import numpy
from datasets import Dataset, DatasetDict
from gguf import GGUFReader
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from check import BASE, KEY, MODEL, check, done, equal

# Tokens of the text that are asked for: a prompt that is scored is computed whole, for each word anew.
TOKENS = 200
# Points of accuracy (of a hundred) and nats per word that the server may be off.
POINTS, NATS = 0.5, 0.05

reader = GGUFReader(os.environ["STOWAGE_MODEL_FILE"])


def strings(key):
    field = reader.fields[key]
    return [bytes(field.parts[i]).decode() for i in field.data]


def tokenizer():
    """The tokenizer of the file, in the form that the harness loads."""
    tokens = strings("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in strings("tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", bos_token="<|im_start|>")


with open(os.environ["STOWAGE_REFERENCE"]) as file:
    passage = json.load(file)["passage"]
ids = passage["ids"][:TOKENS]
tok = tokenizer()
equal(tok(tok.decode(ids))["input_ids"], ids, "the text of the reference, tokenized")

# A word begins where a token begins with a space.
starts = [i for i, id in enumerate(ids) if i > 0 and tok.decode([id]).startswith(" ")]
words = []
for start, end in zip(starts, starts[1:]):
    target = passage["target"][start - 1 : end - 1]
    top = [best[0] for best in passage["top_ids"][start - 1 : end - 1]]
    words.append(
        {
            "context": tok.decode(ids[:start]),
            "word": tok.decode(ids[start:end]),
            "logprob": float(numpy.sum(target)),
            "greedy": top == ids[start:end],
        }
    )


class NextWord(ConfigurableTask):
    """One log-likelihood per word."""

    VERSION = 0

    def __init__(self):
        super().__init__(
            config={
                "task": "next_word",
                "test_split": "test",
                "output_type": "loglikelihood",
                "doc_to_text": "context",
                "doc_to_target": "word",
            }
        )

    def download(self, *args, **kwargs):
        self.dataset = DatasetDict({"test": Dataset.from_list(words)})

    def construct_requests(self, doc, ctx, **kwargs):
        kept = {key: kwargs[key] for key in ("metadata",) if key in kwargs}
        return [
            Instance(
                request_type="loglikelihood", doc=doc, arguments=(doc["context"], doc["word"]), idx=0, **kept
            )
        ]

    def process_results(self, doc, results):
        logprob, greedy = results[0]
        return {"acc": float(greedy), "distance": abs(logprob - doc["logprob"])}

    def aggregation(self):
        return {"acc": numpy.mean, "distance": numpy.mean}

    def higher_is_better(self):
        return {"acc": True, "distance": False}


os.environ["OPENAI_API_KEY"] = KEY
with tempfile.TemporaryDirectory() as folder:
    tok.save_pretrained(folder)
    found = simple_evaluate(
        model="local-completions",
        model_args={
            "model": MODEL,
            "base_url": BASE + "/completions",
            "tokenizer": folder,
            "tokenizer_backend": "huggingface",
            "num_concurrent": 4,
            "max_length": 1024,
        },
        tasks=[NextWord()],
        bootstrap_iters=0,
    )
scores = found["results"]["next_word"]
accuracy, distance = 100 * scores["acc,none"], scores["distance,none"]
reference = 100 * float(numpy.mean([word["greedy"] for word in words]))
print(f"{len(words)} words: accuracy {accuracy:.2f}, transformers {reference:.2f}; {distance:.4f} nats apart")
check(len(words) > 100, "too few words for half a point")
check(abs(accuracy - reference) <= POINTS, f"accuracy {accuracy:.2f}, transformers {reference:.2f}")
check(distance <= NATS, f"{distance:.4f} nats apart")
done()
