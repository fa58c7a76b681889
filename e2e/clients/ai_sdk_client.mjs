// The Vercel AI SDK with its provider for servers that are compatible with OpenAI's.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { APICallError, generateText, streamText } from 'ai';
import { ANSWER, BASE, KEY, MODEL, QUESTION, TOO_LONG, check, done, equal } from './check.mjs';

const provider = createOpenAICompatible({ name: 'stowage', baseURL: BASE, apiKey: KEY, includeUsage: true });
const fields = { model: provider(MODEL), temperature: 0, maxOutputTokens: 16, maxRetries: 0 };

const whole = await generateText({ ...fields, messages: QUESTION });
equal(whole.text, ANSWER, 'whole answer');
equal(whole.finishReason, 'stop', 'why it ended');
check(whole.usage.outputTokens > 0, 'usage');

const stream = streamText({ ...fields, messages: QUESTION });
let text = '';
for await (const part of stream.textStream) text += part;
equal(text, ANSWER, 'streamed answer');
equal((await stream.usage).outputTokens, whole.usage.outputTokens, 'usage of the stream');

const history = [...QUESTION, ...whole.response.messages, { role: 'user', content: 'And of Italy?' }];
check((await generateText({ ...fields, messages: history })).text, 'an answer after an answer sent back');

const completion = await generateText({ ...fields, model: provider.completionModel(MODEL), maxOutputTokens: 4, prompt: 'The capital of France is' });
check(completion.text.length > 0, 'text model');

try {
  await generateText({ ...fields, prompt: TOO_LONG });
  check(false, 'a prompt that is too long was answered');
} catch (err) {
  check(APICallError.isInstance(err) && err.statusCode === 400 && !err.isRetryable, String(err));
  check(err.message.includes('maximum context length is'), err.message);
}
done();
