// No package at all: fetch, and the server-sent events read by hand as a web page would.
// Usage: node fetch_chat.mjs http://127.0.0.1:8000/v1
// Prints the text as it comes, then one line of JSON.
const baseURL = process.argv[2];
const chat = {
  model: "smollm2-135m-instruct",
  messages: [{ role: "user", content: "Name the capital of France." }],
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
};

const post = (body) =>
  fetch(`${baseURL}/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(30_000),
  });

// The data of each event, whatever pieces the network cuts the stream into.
async function* events(response) {
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n\n");
    rest = parts.pop();
    for (const part of parts) yield part.replace(/^data: /, "");
  }
  if (rest) throw new Error(`the stream ended inside an event: ${rest}`);
}

async function stream() {
  const response = await post(chat);
  if (!response.ok) throw new Error(await response.text());
  const pieces = [];
  let finishReason = null;
  let usage = null;
  let last = null;
  for await (const data of events(response)) {
    last = data;
    if (data === "[DONE]") continue;
    const chunk = JSON.parse(data);
    const choice = chunk.choices[0]; // the last chunk has none, only the usage
    if (choice?.delta.content) {
      pieces.push(choice.delta.content);
      process.stdout.write(choice.delta.content);
    }
    finishReason = choice?.finish_reason ?? finishReason;
    usage = chunk.usage ?? usage;
  }
  process.stdout.write("\n");
  return { contentType: response.headers.get("content-type"), pieces, finishReason, usage, last };
}

async function refusal(fields) {
  const response = await post({ ...chat, ...fields });
  return { status: response.status, ...(await response.json()).error };
}

const report = {
  streamed: await stream(),
  badTemperature: await refusal({ temperature: 9 }),
  unknownModel: await refusal({ model: "other" }),
};
console.log(JSON.stringify(report));
