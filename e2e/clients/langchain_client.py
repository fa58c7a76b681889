"""LangChain: chat models, streams, batches, text models."""

from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

from check import ANSWER, BASE, KEY, MODEL, QUESTION, TOO_LONG, check, done, equal

common = {"base_url": BASE, "api_key": KEY, "model": MODEL, "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(max_tokens=16, stream_usage=True, **common)
question = HumanMessage(QUESTION[0]["content"])

whole = chat.invoke([question])
equal(whole.content, ANSWER, "whole answer")
check(whole.usage_metadata["output_tokens"] > 0, "usage")

total = None
for part in chat.stream([question]):
    total = part if total is None else total + part
equal(total.content, ANSWER, "streamed answer")
equal(total.usage_metadata["output_tokens"], whole.usage_metadata["output_tokens"], "usage of the stream")

check(chat.invoke([question, whole, HumanMessage("And of Italy?")]).content, "the answer sent back")
# Whatever the model makes of it, a request with an empty answer is not refused.
check(chat.invoke([question, AIMessage(""), HumanMessage("And of Italy?")]).usage_metadata, "an empty answer sent back")
equal([answer.content for answer in chat.batch([[question]] * 3)], [ANSWER] * 3, "a batch")

try:
    chat.invoke(TOO_LONG)
    check(False, "a prompt that is too long was answered")
except Exception as err:
    check("context_length_exceeded" in str(err), str(err))
    try:
        from langchain_core.exceptions import ContextOverflowError
    except ImportError:
        pass
    else:
        check(isinstance(err, ContextOverflowError), f"{type(err).__name__} is no ContextOverflowError")

text = OpenAI(max_tokens=4, **common)
check("Paris" in text.invoke("The capital of France is"), "text model")
equal(len(text.generate(["a", "b", "c"]).generations), 3, "several prompts")
done()
