// The official JavaScript client: a chat streamed and whole, the models, and the errors it raises.
// Usage: node openai_chat.mjs http://127.0.0.1:8000/v1
// Prints the text as it comes, then one line of JSON.
import OpenAI, { APIError } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0, timeout: 30_000 });
const chat = {
  model: "smollm2-135m-instruct",
  messages: [{ role: "user", content: "Name the capital of France." }],
  temperature: 0,
};

async function stream() {
  const chunks = await client.chat.completions.create({
    ...chat,
    stream: true,
    stream_options: { include_usage: true },
  });
  const pieces = [];
  let finishReason = null;
  let usage = null;
  for await (const chunk of chunks) {
    const choice = chunk.choices[0]; // the last chunk has none, only the usage
    if (choice?.delta.content) {
      pieces.push(choice.delta.content);
      process.stdout.write(choice.delta.content);
    }
    finishReason = choice?.finish_reason ?? finishReason;
    usage = chunk.usage ?? usage;
  }
  process.stdout.write("\n");
  return { pieces, finishReason, usage };
}

async function whole() {
  const answer = await client.chat.completions.create(chat);
  const [choice] = answer.choices;
  return { text: choice.message.content, finishReason: choice.finish_reason, usage: answer.usage };
}

async function models() {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  return ids;
}

async function refusal(fields) {
  try {
    await client.chat.completions.create({ ...chat, ...fields });
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    return { class: error.constructor.name, status: error.status, param: error.param, code: error.code };
  }
  throw new Error(`not refused: ${JSON.stringify(fields)}`);
}

const report = {
  streamed: await stream(),
  whole: await whole(),
  models: await models(),
  badTemperature: await refusal({ temperature: 9 }),
  badTemperatureStreamed: await refusal({ temperature: 9, stream: true }),
  unknownModel: await refusal({ model: "other" }),
};
console.log(JSON.stringify(report));
