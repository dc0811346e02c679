// What a client's script reports, one line of JSON per check: the counterpart of tests/clients/capabilities.py.
import assert from "node:assert/strict";

export const MODEL_ID = "smollm2-135m-instruct";
export const QUESTION = "Name the capital of France.";
export const WEATHER = "21 degrees";
export const MAX_TOKENS = 48;
export const baseURL = process.env.OPENAI_BASE_URL;
export const apiKey = process.env.OPENAI_API_KEY;

const only = process.env.CLIENT_ONLY_CAPABILITY;

export async function check(row, capability, run) {
  if (only && only !== capability) return;
  const outcome = { row, capability, error: "", trace: "" };
  try {
    await run();
  } catch (error) {
    outcome.error = `${error?.name}: ${error?.message}`;
    outcome.trace = String(error?.stack);
  }
  // As Python writes it: the runner knows the line by its beginning.
  console.log(`\n${JSON.stringify(outcome).replace('{"row":', '{"row": ')}`);
}

export function checkArguments(given) {
  const values = typeof given === "string" ? JSON.parse(given) : given;
  assert.deepEqual(Object.keys(values).sort(), ["city", "unit"]);
  assert.ok(["Paris", "Berlin"].includes(values.city));
  assert.ok(["C", "F"].includes(values.unit));
}
