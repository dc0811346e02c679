#!/usr/bin/env bash
# Every common request with curl alone. SERVER_URL: where the service is; SERVER_KEY: the API key, if it needs one.
set -euo pipefail
url=${SERVER_URL:-http://127.0.0.1:8000}
model=smollm2-135m-instruct

ask() { # ask PATH BODY
  curl --silent --show-error --no-buffer --fail-with-body --max-time 120 "$url$1" \
    ${SERVER_KEY:+--header "Authorization: Bearer $SERVER_KEY"} \
    --header 'Content-Type: application/json' --data "$2"
  echo
}

echo '== the simplest request'
ask /v1/generate '{"prompt": "The sea is", "max_tokens": 8}'

echo '== chat'
ask /v1/chat/completions '{"model": "'$model'", "temperature": 0,
  "messages": [{"role": "user", "content": "Name the capital of France."}]}'

echo '== chat, streamed'
ask /v1/chat/completions '{"model": "'$model'", "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "user", "content": "Name the capital of France."}]}'

echo '== completions with log-probabilities'
ask /v1/completions '{"model": "'$model'", "temperature": 0, "prompt": "One, two, three,", "max_tokens": 2, "logprobs": 2}'

echo '== an answer that fits a JSON schema'
ask /v1/chat/completions '{"model": "'$model'", "temperature": 0, "max_tokens": 60,
  "messages": [{"role": "user", "content": "Which city is the capital of France?"}],
  "guided_json": {"type": "object", "additionalProperties": false, "required": ["city", "is_capital"], "properties":
    {"city": {"type": "string", "maxLength": 40}, "is_capital": {"type": "boolean"}}}}'

echo '== tokenize'
ask /tokenize '{"prompt": "The sea is", "return_token_strs": true}'
