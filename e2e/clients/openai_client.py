"""The openai package: what most programs use."""

import openai

from check import ANSWER, BASE, KEY, MODEL, QUESTION, TOO_LONG, check, done, equal

client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)


def chat(messages=QUESTION, **fields):
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=16, **fields
    )


def whole_and_streamed():
    whole = chat()
    equal(whole.choices[0].message.content, ANSWER, "whole answer")
    text, usage = "", None
    for event in chat(stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        text += "".join(choice.delta.content or "" for choice in event.choices)
    equal(text, ANSWER, "streamed answer")
    equal(usage.completion_tokens, whole.usage.completion_tokens, "tokens counted in the stream")
    check(MODEL in [model.id for model in client.models.list()], "the model is listed")
    equal(client.models.retrieve(MODEL).id, MODEL, "the model by its name")


def answers_are_sent_back_as_they_came():
    first = chat().choices[0].message
    history = [*QUESTION, first, {"role": "user", "content": "And of Italy?"}]
    plain = [*QUESTION, {"role": "assistant", "content": ANSWER}, history[-1]]
    equal(chat(history).choices[0].message.content, chat(plain).choices[0].message.content, "object sent back")
    dumped = {**first.model_dump(), "finish_reason": "stop", "reasoning_content": "thinking"}
    history[1] = dumped
    equal(chat(history).choices[0].message.content, chat(plain).choices[0].message.content, "dictionary sent back")


def extensions_of_vllm():
    short = chat(extra_body={"stop": ["Paris"], "include_stop_str_in_output": True})
    check(short.choices[0].message.content.endswith("Paris"), "the stop string is included")
    longer = chat(extra_body={"min_tokens": 14})
    check(longer.usage.completion_tokens >= 14, "min_tokens")
    begun = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    continued = chat(begun, extra_body={"continue_final_message": True, "add_generation_prompt": False})
    check("Paris" in continued.choices[0].message.content, "the last message is continued")
    greedy = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=1, top_p=0, max_tokens=16
    )
    equal(greedy.choices[0].message.content, ANSWER, "top_p 0 is greedy")


def logprobs():
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    equal("".join(token.token for token in content), ANSWER, "tokens joined")
    text = "The capital of France is Paris"
    scored = client.completions.create(
        model=MODEL, prompt=text, max_tokens=0, echo=True, logprobs=1
    ).choices[0]
    equal(scored.text, text, "echo")
    equal("".join(scored.logprobs.tokens), text, "echoed tokens joined")
    equal(scored.logprobs.token_logprobs[0], None, "nothing predicts the first token")
    check(all(logprob <= 0 for logprob in scored.logprobs.token_logprobs[1:]), "log-probabilities")
    for token, offset in zip(scored.logprobs.tokens, scored.logprobs.text_offset):
        equal(text[offset : offset + len(token)], token, "the token at its offset")


def several_choices():
    many = client.completions.create(model=MODEL, prompt=["a", "b", "c"], n=2, max_tokens=2)
    equal([choice.index for choice in many.choices], list(range(6)), "three prompts, two choices each")


def errors():
    def refused(kind, call):
        try:
            call()
        except kind as err:
            return err
        check(False, f"{kind.__name__} was not raised")

    too_long = refused(openai.BadRequestError, lambda: chat([{"role": "user", "content": TOO_LONG}]))
    equal(too_long.code, "context_length_exceeded", "code of a prompt that is too long")
    check("maximum context length is" in too_long.message, too_long.message)
    unknown = refused(openai.NotFoundError, lambda: client.chat.completions.create(model="none", messages=QUESTION))
    equal(unknown.code, "model_not_found", "code of an unknown model")
    misspelt = refused(openai.BadRequestError, lambda: chat(extra_body={"temprature": 1}))
    check("`temperature`" in misspelt.message, misspelt.message)


whole_and_streamed()
answers_are_sent_back_as_they_came()
extensions_of_vllm()
logprobs()
several_choices()
errors()
done()
