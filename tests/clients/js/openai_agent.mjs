// The npm package `openai`: tools, history, structured answers and its own runner of tools, on both routes.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, check, checkArguments } from "./capabilities.mjs";

const client = new OpenAI({ maxRetries: 0, timeout: 60_000 });
const Report = z.object({ city: z.enum(["Paris", "Berlin"]), unit: z.enum(["C", "F"]) });
const user = { role: "user", content: QUESTION };
const CHAT = "openai (Node) chat";
const RESPONSES = "openai (Node) responses";

const tools = [zodFunction({ name: "get_weather", parameters: Report, description: "Tell the weather." })];
const callIt = { type: "function", function: { name: "get_weather" } };
const chat = { model: MODEL_ID, temperature: 0, max_tokens: MAX_TOKENS };

await check(CHAT, "plain", async () => {
  const answer = await client.chat.completions.create({ ...chat, messages: [user] });
  assert.ok(answer.choices[0].message.content);
});

await check(CHAT, "streamed", async () => {
  const stream = client.chat.completions.stream({ ...chat, messages: [user], stream_options: { include_usage: true } });
  const answer = await stream.finalChatCompletion();
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage);
});

async function goOnFrom(message) {
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: WEATHER };
  const answer = await client.chat.completions.create({
    ...chat, messages: [user, message, result], tools, tool_choice: "none",
  });
  assert.ok(answer.choices[0].message);
}

async function called() {
  const answer = await client.chat.completions.parse({
    ...chat, messages: [user], tools, tool_choice: callIt, parallel_tool_calls: false,
  });
  return answer.choices[0].message;
}

await check(CHAT, "tools", async () => {
  const message = await called();
  assert.equal(message.tool_calls.length, 1);
  checkArguments(message.tool_calls[0].function.parsed_arguments);
});

await check(CHAT, "second turn", async () => goOnFrom(await called()));

await check(CHAT, "streamed tools", async () => {
  const stream = client.chat.completions.stream({
    ...chat, messages: [user], tools, tool_choice: callIt, parallel_tool_calls: false,
  });
  const message = (await stream.finalChatCompletion()).choices[0].message;
  checkArguments(message.tool_calls[0].function.arguments);
  await goOnFrom(message);
});

await check(CHAT, "streamed tools", async () => {
  const given = [];
  const runner = client.chat.completions.runTools({
    ...chat, messages: [user], stream: true, tool_choice: callIt, parallel_tool_calls: false,
    tools: [{ ...tools[0], function: { ...tools[0].function, parse: JSON.parse, function: (values) => {
      given.push(values);
      return WEATHER;
    } } }],
  }, { maxChatCompletions: 2 });
  await runner.done();
  given.forEach(checkArguments);
  assert.ok(given.length > 0);
});

await check(CHAT, "structured", async () => {
  const response_format = zodResponseFormat(Report, "report");
  const answer = await client.chat.completions.parse({ ...chat, messages: [user], response_format });
  checkArguments(answer.choices[0].message.parsed);
});

const respond = { model: MODEL_ID, temperature: 0, max_output_tokens: MAX_TOKENS };
const functions = [zodResponsesFunction({ name: "get_weather", parameters: Report, description: "Tell the weather." })];
const forced = { tools: functions, tool_choice: { type: "function", name: "get_weather" }, parallel_tool_calls: false };

await check(RESPONSES, "plain", async () => {
  assert.ok((await client.responses.create({ ...respond, input: QUESTION })).output_text);
});

await check(RESPONSES, "streamed", async () => {
  const stream = client.responses.stream({ ...respond, input: QUESTION });
  assert.ok((await stream.finalResponse()).output_text);
});

async function secondResponse(output) {
  const results = output
    .filter((item) => item.type === "function_call")
    .map((item) => ({ type: "function_call_output", call_id: item.call_id, output: WEATHER }));
  const input = [user, ...output, ...results];
  const answer = await client.responses.create({ ...respond, input, tools: functions, tool_choice: "none" });
  await client.responses.create({ ...respond, input: [...input, ...answer.output, user] });
}

await check(RESPONSES, "tools", async () => {
  const { output } = await client.responses.parse({ ...respond, ...forced, input: [user] });
  checkArguments(output[0].parsed_arguments);
});

await check(RESPONSES, "second turn", async () => {
  await secondResponse((await client.responses.parse({ ...respond, ...forced, input: [user] })).output);
});

await check(RESPONSES, "streamed tools", async () => {
  const { output } = await client.responses.stream({ ...respond, ...forced, input: [user] }).finalResponse();
  checkArguments(output[0].arguments);
  await secondResponse(output);
});

await check(RESPONSES, "structured", async () => {
  const text = { format: zodTextFormat(Report, "report") };
  checkArguments((await client.responses.parse({ ...respond, input: QUESTION, text })).output_parsed);
});
