// The openai package for Node.

import OpenAI from 'openai';
import { ANSWER, BASE, KEY, MODEL, QUESTION, TOO_LONG, check, done, equal } from './check.mjs';

const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const fields = { model: MODEL, messages: QUESTION, temperature: 0, max_tokens: 16 };

const whole = await client.chat.completions.create(fields);
equal(whole.choices[0].message.content, ANSWER, 'whole answer');

let text = '';
for await (const event of await client.chat.completions.create({ ...fields, stream: true })) {
  text += event.choices[0]?.delta?.content ?? '';
}
equal(text, ANSWER, 'streamed answer');

// The helper that puts a stream together again.
const stream = client.chat.completions.stream({ ...fields, stream_options: { include_usage: true } });
const final = await stream.finalChatCompletion();
equal(final.choices[0].message.content, ANSWER, 'answer put together');
equal(final.usage.completion_tokens, whole.usage.completion_tokens, 'usage of the stream');

const history = [...QUESTION, whole.choices[0].message, { role: 'user', content: 'And of Italy?' }];
const again = await client.chat.completions.create({ ...fields, messages: history });
check(again.choices[0].message.content, 'an answer after an answer sent back');

const completion = await client.completions.create({ model: MODEL, prompt: 'The capital of France is', max_tokens: 4, temperature: 0 });
check(completion.choices[0].text.includes('Paris'), completion.choices[0].text);

const models = [];
for await (const model of client.models.list()) models.push(model.id);
check(models.includes(MODEL), `the model is not among ${models}`);

try {
  await client.chat.completions.create({ ...fields, messages: [{ role: 'user', content: TOO_LONG }] });
  check(false, 'a prompt that is too long was answered');
} catch (err) {
  check(err instanceof OpenAI.BadRequestError, String(err));
  equal(err.code, 'context_length_exceeded', 'code of a prompt that is too long');
}

// A client that stops reading leaves nothing behind that would disturb the next request.
const left = await client.chat.completions.create({ ...fields, max_tokens: 500, stream: true });
for await (const _ of left) break;
equal((await client.chat.completions.create(fields)).choices[0].message.content, ANSWER, 'answer after a stream left');
done();
