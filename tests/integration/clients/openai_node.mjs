// The official `openai` client for Node: a scripted conversation with a live server, and what it makes of its answers.
// Run by run.sh, with the server's URL and its key as arguments.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, apiKey] = process.argv.slice(2);
const options = { baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 };
const client = new OpenAI(options);
const model = (await client.models.list()).data[0].id;
const ask = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];
const greedy = { model, temperature: 0, max_tokens: 40 };

const refused = async (call, kind, status, param, code) => {
  const error = await call().then(() => null, (reason) => reason);
  assert.ok(error instanceof kind, `${error}`);
  assert.deepEqual([error.status, error.param, error.code], [status, param, code]);
};

const running = async () => {
  const page = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${apiKey}` } });
  return Number(/^octavo_requests_running (\S+)$/m.exec(await page.text())[1]);
};

const tests = {
  async "models: list and retrieve"() {
    assert.equal((await client.models.retrieve(model)).id, model);
    await refused(() => client.models.retrieve("gpt-5"), OpenAI.NotFoundError, 404, "model", "model_not_found");
  },

  async "a conversation, streamed and whole"() {
    const messages = [...ask];
    for (const [expected, next] of [[/Paris/, "And of Italy?"], [/Rome/, null]]) {
      const whole = await client.chat.completions.create({ ...greedy, messages });
      const text = whole.choices[0].message.content;
      assert.match(text, expected);
      assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
      let streamed = "";
      let usage = null;
      const asked = { ...greedy, messages, stream: true, stream_options: { include_usage: true } };
      for await (const chunk of await client.chat.completions.create(asked)) {
        streamed += chunk.choices[0]?.delta.content ?? "";
        usage = chunk.usage ?? usage;
      }
      assert.equal(streamed, text);
      assert.equal(usage.total_tokens, whole.usage.total_tokens);
      messages.push({ role: "assistant", content: text }, { role: "user", content: next });
    }
  },

  async "the client's own accumulator"() {
    const stream = client.chat.completions.stream({ ...greedy, messages: ask });
    const final = await stream.finalChatCompletion();
    const whole = await client.chat.completions.create({ ...greedy, messages: ask });
    assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
    assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
  },

  async "completions: text, ids, streams"() {
    const whole = await client.completions.create({ ...greedy, prompt: "Once upon a time" });
    let streamed = "";
    for await (const chunk of await client.completions.create({ ...greedy, prompt: "Once upon a time", stream: true })) {
      streamed += chunk.choices[0].text;
    }
    assert.equal(streamed, whole.choices[0].text);
    const many = await client.completions.create({ ...greedy, max_tokens: 4, prompt: [[1, 2, 3], [4, 5]] });
    assert.deepEqual(many.choices.map((choice) => choice.index), [0, 1]);
    assert.equal(many.usage.prompt_tokens, 5);
  },

  async "logprobs in both shapes"() {
    const body = { ...greedy, max_tokens: 6, messages: ask, logprobs: true, top_logprobs: 2 };
    const { content } = (await client.chat.completions.create(body)).choices[0].logprobs;
    assert.equal(content.length, 6);
    for (const entry of content) {
      assert.equal(entry.top_logprobs.length, 2);
      assert.ok(entry.logprob <= 0);
      assert.equal(Buffer.from(entry.bytes).toString(), entry.token);
    }
    const echo = { model, prompt: "One two three", max_tokens: 0, echo: true, logprobs: 1 };
    const scored = (await client.completions.create(echo)).choices[0];
    assert.equal(scored.text, "One two three");
    assert.equal(scored.logprobs.tokens.join(""), "One two three");
    assert.equal(scored.logprobs.token_logprobs[0], null);
  },

  async "n, seed and stop"() {
    const body = { ...greedy, temperature: 1, max_tokens: 12, messages: ask, seed: 5 };
    const both = (await client.chat.completions.create({ ...body, n: 2 })).choices;
    for (const [index, choice] of both.entries()) {
      const alone = await client.chat.completions.create({ ...body, seed: 5 + index });
      assert.equal(alone.choices[0].message.content, choice.message.content);
    }
    const stopped = (await client.completions.create({ ...greedy, prompt: "1, 2, 3, 4,", stop: [" 6"] })).choices[0];
    assert.equal(stopped.finish_reason, "stop");
    assert.ok(!stopped.text.includes(" 6"));
  },

  async "errors are of the right class"() {
    const wrong = { ...greedy, messages: ask };
    const create = (body) => () => client.chat.completions.create(body);
    const bad = OpenAI.BadRequestError;
    await refused(create({ ...wrong, temperature: -1 }), bad, 400, "temperature", null);
    const long = [{ role: "user", content: "word ".repeat(9000) }];
    await refused(create({ ...wrong, messages: long }), bad, 400, "messages", "context_length_exceeded");
    const format = { type: "json_schema", json_schema: { name: "x", schema: {} } };
    await refused(create({ ...wrong, response_format: format }), bad, 400, "response_format", "unsupported");
    await refused(create({ ...wrong, model: "gpt-5" }), OpenAI.NotFoundError, 404, "model", "model_not_found");
    const stranger = new OpenAI({ ...options, apiKey: "wrong" });
    const call = () => stranger.chat.completions.create(wrong);
    await refused(call, OpenAI.AuthenticationError, 401, null, "invalid_api_key");
  },

  async "what has no effect is said"() {
    const call = client.chat.completions.create({ ...greedy, max_tokens: 2, messages: ask, user: "me", store: true });
    const { data, response } = await call.withResponse();
    assert.deepEqual(response.headers.get("x-octavo-ignored").split(", ").sort(), ["store", "user"]);
    assert.equal(data.warnings.length, 2);
  },

  async "a time-out and an abort end the work"() {
    const endless = { ...greedy, max_tokens: 1500, ignore_eos: true, prompt: "Once" };
    const hasty = new OpenAI({ ...options, timeout: 300 });
    await assert.rejects(() => hasty.completions.create(endless), OpenAI.APIConnectionTimeoutError);
    const stream = await client.completions.create({ ...endless, stream: true });
    for await (const _ of stream) {
      stream.controller.abort();
      break;
    }
    const deadline = Date.now() + 3000;
    while ((await running()) > 0) assert.ok(Date.now() < deadline, "it still runs");
  },
};

let numFailed = 0;
for (const [name, test] of Object.entries(tests)) {
  try {
    await test();
  } catch (error) {
    numFailed += 1;
    console.log(`FAILED ${name}\n${error?.stack ?? error}`);
  }
}
console.log(`openai-node: ${Object.keys(tests).length - numFailed} passed, ${numFailed} failed`);
process.exit(numFailed ? 1 : 0);
