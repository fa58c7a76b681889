// What the npm packages llama-tokenizer-js and llama3-tokenizer-js make of texts, and their vocabularies.
// Standard input: a JSON list of texts. Standard output: one JSON object. Run in a folder with both packages.
import { readFileSync } from "node:fs";
import llama2 from "llama-tokenizer-js";
import llama3 from "llama3-tokenizer-js";

const texts = JSON.parse(readFileSync(0, "utf8"));
const byPriority = (merges) => [...merges].sort((a, b) => a[1] - b[1]).map(([pair]) => pair);
const out = {
  llama2: { tokens: llama2.vocabById, ids: texts.map((text) => llama2.encode(text, true, true)) },
  llama3: {
    tokens: llama3.vocabById,
    merges: byPriority(llama3.merges),
    ids: texts.map((text) => llama3.encode(text, { bos: false, eos: false })),
  },
};
process.stdout.write(JSON.stringify(out));
