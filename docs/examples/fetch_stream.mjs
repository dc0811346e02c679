// A streamed chat in JavaScript without packages: fetch, and the server-sent events read by hand. Node 20 or newer; in a
// web page the same but for process.env and process.stdout.
// SERVER_URL says where the service is, SERVER_KEY the API key if it needs one.
const url = process.env.SERVER_URL ?? "http://127.0.0.1:8000";
const key = process.env.SERVER_KEY;

// The data of each event, whatever pieces the network cuts the stream into. Comments begin with a colon: skip them.
async function* events(response) {
  let rest = "";
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice("data: ".length);
  }
}

const response = await fetch(`${url}/v1/chat/completions`, {
  method: "POST",
  headers: { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) },
  body: JSON.stringify({
    model: "smollm2-135m-instruct",
    messages: [{ role: "user", content: "Name the capital of France." }],
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  }),
  signal: AbortSignal.timeout(120_000),
});
if (!response.ok) throw new Error((await response.json()).error.message);

let isComplete = false;
for await (const data of events(response)) {
  if (data === "[DONE]") {
    isComplete = true;
    continue;
  }
  const chunk = JSON.parse(data);
  if (chunk.error) throw new Error(chunk.error.message); // something failed after the stream had begun
  process.stdout.write(chunk.choices[0]?.delta.content ?? ""); // the last chunk has no choice, only the usage
  if (chunk.usage) process.stdout.write(`\n${chunk.usage.completion_tokens} tokens\n`);
}
if (!isComplete) throw new Error("the stream ended early");
