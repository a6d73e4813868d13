// Requests to the server of this page. Every failure becomes an ApiError with one sentence.

const MAX_RETRIES = 6; // while the server is busy
const NO_ANSWER = "the server does not answer: check whether it is still running.";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Callbacks of the page: `key(refused)` -> promise of the API key, `busy(seconds)` before a retry. */
export const callbacks = { key: null, busy: () => {} };

let key = "";

/**
 * Send a request -> { blob, name }; `name` is the file name given by the server, if any.
 *
 * A plain object as `body` is sent as JSON; `progress` is called with the fraction of the body that was sent; `signal`
 * of an AbortController cancels the request.
 */
export async function request(method, path, body, progress, signal) {
  for (let turn = 0; ; turn++) {
    const reply = await send(method, path, body, progress, signal);
    if (reply.status < 300) return { blob: reply.response, name: fileName(reply) };
    const wait = Number(reply.getResponseHeader("Retry-After"));
    if (reply.status === 401 && callbacks.key) {
      key = await callbacks.key(key !== "");
    } else if ([429, 503].includes(reply.status) && wait > 0 && turn < MAX_RETRIES) {
      callbacks.busy(wait);
      await new Promise((resume) => setTimeout(resume, 1000 * wait));
    } else {
      throw new ApiError(await sentence(reply), reply.status);
    }
  }
}

/** Send a request and parse the response as JSON. */
export async function requestJson(...parameters) {
  const { blob } = await request(...parameters);
  return JSON.parse(await blob.text());
}

/** XMLHttpRequest, because fetch does not report upload progress. */
function send(method, path, body, progress, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const xhr = new XMLHttpRequest();
    xhr.open(method, path);
    xhr.responseType = "blob";
    if (key) xhr.setRequestHeader("Authorization", `Bearer ${key}`);
    const json = body && !(body instanceof FormData);
    if (json) xhr.setRequestHeader("Content-Type", "application/json");
    if (progress) xhr.upload.onprogress = (event) => progress(event.loaded / event.total);
    xhr.onload = () => resolve(xhr);
    signal?.addEventListener("abort", () => {
      xhr.abort();
      reject(signal.reason);
    });
    xhr.onerror = () => reject(new ApiError(NO_ANSWER, 0));
    xhr.send(json ? JSON.stringify(body) : body);
  });
}

async function sentence(reply) {
  try {
    const { message } = JSON.parse(await reply.response.text()).error;
    return /[.!?]$/.test(message) ? message : `${message}.`;
  } catch {
    return `the server answered with status ${reply.status} without an explanation.`;
  }
}

function fileName(reply) {
  const header = reply.getResponseHeader("Content-Disposition") ?? "";
  const coded = header.match(/filename\*=UTF-8''([^;]+)/i);
  return coded ? decodeURIComponent(coded[1]) : (header.match(/filename="([^"]+)"/)?.[1] ?? "");
}
