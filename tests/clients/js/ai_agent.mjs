// Vercel's AI SDK: its loop of tools, streamed and not, with its provider for OpenAI and the one for compatible services.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, ToolLoopAgent, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";
import { MAX_TOKENS, MODEL_ID, QUESTION, WEATHER, apiKey, baseURL, check, checkArguments } from "./capabilities.mjs";

const Report = z.object({ city: z.enum(["Paris", "Berlin"]), unit: z.enum(["C", "F"]) });
const compatible = createOpenAICompatible({
  name: "attend", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true,
});
const openai = createOpenAI({ baseURL, apiKey });

const get_weather = tool({
  description: "Tell the weather.",
  inputSchema: Report,
  execute: (values) => {
    checkArguments(values);
    return WEATHER;
  },
});

async function checks(row, model, providerOptions = {}) {
  const settings = { model, temperature: 0, maxOutputTokens: MAX_TOKENS, maxRetries: 0, providerOptions };
  const loop = {
    ...settings,
    tools: { get_weather },
    stopWhen: isStepCount(2),
    // A model this small seldom calls by itself.
    prepareStep: ({ stepNumber }) => ({
      toolChoice: stepNumber === 0 ? { type: "tool", toolName: "get_weather" } : "none",
    }),
  };

  await check(row, "plain", async () => {
    const answer = await generateText({ ...settings, instructions: "Be brief.", prompt: QUESTION });
    assert.ok(answer.text);
    assert.ok(answer.usage.outputTokens);
  });

  await check(row, "streamed", async () => {
    const failures = [];
    const result = streamText({ ...settings, prompt: QUESTION, onError: ({ error }) => failures.push(error) });
    const pieces = [];
    for await (const piece of result.textStream) pieces.push(piece);
    if (failures.length > 0) throw failures[0];
    assert.ok(pieces.length > 1);
  });

  await check(row, "tools", async () => {
    const answer = await generateText({ ...loop, prompt: QUESTION });
    assert.equal(answer.steps.length, 2);
    checkArguments(answer.steps[0].toolCalls[0].input);
    assert.equal(answer.steps[0].toolResults[0].output, WEATHER);
  });

  await check(row, "second turn", async () => {
    const agent = new ToolLoopAgent(loop);
    const first = [{ role: "user", content: QUESTION }];
    const answer = await agent.generate({ messages: first });
    const again = [...first, ...answer.response.messages, { role: "user", content: "And in Berlin?" }];
    assert.ok((await agent.generate({ messages: again })).steps.length > 0);
  });

  await check(row, "streamed tools", async () => {
    const failures = [];
    const result = streamText({ ...loop, prompt: QUESTION, onError: ({ error }) => failures.push(error) });
    const kinds = [];
    for await (const part of result.fullStream) kinds.push(part.type);
    if (failures.length > 0) throw failures[0];
    assert.ok(kinds.includes("tool-call"));
    assert.ok(kinds.includes("tool-result"));
  });

  await check(row, "structured", async () => {
    const output = Output.object({ schema: Report });
    checkArguments((await generateText({ ...settings, prompt: QUESTION, output })).output);
  });

  await check(row, "structured", async () => {
    const output = Output.object({ schema: Report });
    const answer = await generateText({ ...loop, prompt: QUESTION, output });
    assert.equal(answer.steps.length, 2);
    checkArguments(answer.output);
  });
}

await checks("ai SDK openai-compatible", compatible(MODEL_ID));
await checks("ai SDK openai chat", openai.chat(MODEL_ID));
await checks("ai SDK openai responses", openai.responses(MODEL_ID), { openai: { store: false } }); // nothing is stored
