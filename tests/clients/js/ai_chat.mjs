// Vercel's AI SDK through its provider for OpenAI-compatible services: a chat streamed and whole, and a refusal.
// Usage: node ai_chat.mjs http://127.0.0.1:8000/v1
// Prints the text as it comes, then one line of JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

const attend = createOpenAICompatible({ name: "attend", baseURL: process.argv[2], includeUsage: true });
const chat = {
  model: attend("smollm2-135m-instruct"),
  prompt: "Name the capital of France.",
  temperature: 0,
  maxRetries: 0,
  abortSignal: AbortSignal.timeout(30_000),
};

const counts = ({ inputTokens, outputTokens, totalTokens }) => ({ inputTokens, outputTokens, totalTokens });

async function stream() {
  let failure = null; // streamText reports errors here instead of throwing them
  const result = streamText({ ...chat, onError: ({ error }) => { failure = error; } });
  const pieces = [];
  for await (const piece of result.textStream) {
    pieces.push(piece);
    process.stdout.write(piece);
  }
  process.stdout.write("\n");
  if (failure) throw failure;
  return { pieces, finishReason: await result.finishReason, usage: counts(await result.usage) };
}

async function whole() {
  const answer = await generateText(chat);
  return { text: answer.text, finishReason: answer.finishReason, usage: counts(answer.usage) };
}

async function refusal(settings) {
  try {
    await generateText({ ...chat, ...settings });
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    return { class: error.name, status: error.statusCode, message: error.message };
  }
  throw new Error(`not refused: ${JSON.stringify(settings)}`);
}

const report = {
  streamed: await stream(),
  whole: await whole(),
  badTemperature: await refusal({ temperature: 9 }),
  unknownModel: await refusal({ model: attend("other") }),
};
console.log(JSON.stringify(report));
