// Requests to the server that served this page. Everything that goes wrong comes out as an ApiError with one sentence.

const PATIENCE = 6; // times a busy server is asked again
const GONE = "the server does not answer: see whether it is still running.";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** What the page does when the server wants a key (-> promise of the key) or time (seconds). */
export const asks = { key: null, patience: () => {} };

let key = "";

/**
 * -> { blob, name } of the answer; `name` is the file name the server gives it, if any.
 *
 * A plain object as `body` goes as JSON, FormData as it is; `sent` hears the share of the body that is on its way.
 */
export async function ask(method, path, body, sent) {
  for (let turn = 0; ; turn++) {
    const reply = await send(method, path, body, sent);
    if (reply.status < 300) return { blob: reply.response, name: fileName(reply) };
    const wait = Number(reply.getResponseHeader("Retry-After"));
    if (reply.status === 401 && asks.key) {
      key = await asks.key(key !== "");
    } else if ([429, 503].includes(reply.status) && wait > 0 && turn < PATIENCE) {
      asks.patience(wait);
      await new Promise((resume) => setTimeout(resume, 1000 * wait));
    } else {
      throw new ApiError(await sentence(reply), reply.status);
    }
  }
}

/** `ask` for an answer in JSON. */
export async function askJson(...request) {
  const { blob } = await ask(...request);
  return JSON.parse(await blob.text());
}

/** XMLHttpRequest, since fetch tells nothing of an upload's progress. */
function send(method, path, body, sent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    request.responseType = "blob";
    if (key) request.setRequestHeader("Authorization", `Bearer ${key}`);
    const json = body && !(body instanceof FormData);
    if (json) request.setRequestHeader("Content-Type", "application/json");
    if (sent) request.upload.onprogress = (event) => sent(event.loaded / event.total);
    request.onload = () => resolve(request);
    request.onerror = () => reject(new ApiError(GONE, 0));
    request.send(json ? JSON.stringify(body) : body);
  });
}

async function sentence(reply) {
  try {
    const { message } = JSON.parse(await reply.response.text()).error;
    return /[.!?]$/.test(message) ? message : `${message}.`;
  } catch {
    return `the server answered with status ${reply.status} and no word why.`;
  }
}

function fileName(reply) {
  const header = reply.getResponseHeader("Content-Disposition") ?? "";
  const coded = header.match(/filename\*=UTF-8''([^;]+)/i);
  return coded ? decodeURIComponent(coded[1]) : (header.match(/filename="([^"]+)"/)?.[1] ?? "");
}
