// What the Node clients of this folder have in common: where to ask, and how a check is reported.

// The gateway (or an engine alone) without a path, a key, and the name of a model with a chat template.
export const { STOWAGE_URL: URL = '', STOWAGE_KEY: KEY = '', STOWAGE_MODEL: MODEL = '' } = process.env;
export const BASE = `${URL}/v1`;
export const QUESTION = [{ role: 'user', content: 'What is the capital of France?' }];
export const ANSWER = process.env.STOWAGE_ANSWER ?? 'The capital of France is Paris.';
// More tokens than any model of the tests holds.
export const TOO_LONG = 'hello '.repeat(20000);

let count = 0;

// Ends the program with `message` unless the condition holds.
export function check(condition, message) {
  count += 1;
  if (!condition) {
    console.error(`check ${count} failed: ${message}`);
    process.exit(1);
  }
}

export function equal(found, expected, what) {
  check(found === expected, `${what}: expected ${JSON.stringify(expected)}, got ${JSON.stringify(found)}`);
}

// The last line of a client that found everything as expected.
export function done() {
  console.log(`${count} checks passed`);
}
