"use strict";
// Reads the stream of records (see server.py), plays pictures at their rate, and sends what the controls say.

const token = new URLSearchParams(location.search).get("token");
const $ = (id) => document.getElementById(id);
const canvas = $("picture");
const context = canvas.getContext("2d");

const HOWS = {
  recache: "The past is seen anew under the new prompt: the change comes soon and without a jump.",
  switch: "New pictures follow the new prompt, the past stays as it was: a slower change.",
  cut: "The past is forgotten: a cut to another scene.",
};
const MOST = 4; // seconds of pictures that may wait before old ones are skipped, as after a sleep of the page

let fps = 16;
let show = 0; // the video that is playing
let waiting = []; // pictures that were not shown yet: promises of bitmaps
let playing = false; // false while pictures are gathered
let due = 0; // when the next picture is to be shown
let hold = 2; // pictures to gather before playing begins
let status = { state: "idle" };

function address(path) {
  return token ? `${path}?token=${encodeURIComponent(token)}` : path;
}

async function ask(path, words) {
  $("error").textContent = "";
  try {
    const response = await fetch(address(path), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(words),
    });
    if (response.ok) return true;
    const text = await response.text();
    try {
      $("error").textContent = JSON.parse(text).error;
    } catch {
      $("error").textContent = text;
    }
  } catch {
    $("error").textContent = "the program does not answer: is it still running?";
  }
  return false;
}

// ---- the stream ----

async function* records(reader) {
  let buffer = new Uint8Array(0);
  async function take(count) {
    while (buffer.length < count) {
      const { done, value } = await reader.read();
      if (done) return null;
      const joined = new Uint8Array(buffer.length + value.length);
      joined.set(buffer);
      joined.set(value, buffer.length);
      buffer = joined;
    }
    const part = buffer.slice(0, count);
    buffer = buffer.slice(count);
    return part;
  }
  for (;;) {
    const head = await take(4);
    if (!head) return;
    const line = await take(new DataView(head.buffer).getUint32(0));
    if (!line) return;
    const record = JSON.parse(new TextDecoder().decode(line));
    record.data = [];
    for (const length of record.pictures ?? []) {
      const picture = await take(length);
      if (!picture) return;
      record.data.push(picture);
    }
    yield record;
  }
}

async function follow() {
  for (;;) {
    try {
      const response = await fetch(address("stream"));
      if (!response.ok) throw new Error(await response.text());
      for await (const record of records(response.body.getReader())) {
        if (record.pictures) gather(record);
        else told(record);
      }
    } catch (error) {
      if (error.message.includes("token")) {
        $("note").textContent = error.message;
        return;
      }
    }
    $("note").textContent = "The program does not answer; trying again.";
    await new Promise((wake) => setTimeout(wake, 1000));
  }
}

function gather(record) {
  if (record.show !== show) {
    show = record.show;
    waiting = [];
    playing = false;
  }
  for (const data of record.data) {
    waiting.push(createImageBitmap(new Blob([data], { type: "image/jpeg" })));
  }
  hold = Math.max(hold, record.pictures.length);
  while (waiting.length > MOST * fps) {
    waiting.shift().then((picture) => picture.close());
  }
}

// ---- playing ----

async function play(now) {
  const stopped = status.state === "paused";
  const live = status.state === "making" || status.state === "stopping";
  if (!playing && waiting.length >= (live ? hold : 1)) {
    playing = true;
    due = now;
  }
  if (playing && !stopped && now >= due) {
    if (waiting.length) {
      const picture = await waiting.shift();
      if (canvas.width !== picture.width || canvas.height !== picture.height) {
        canvas.width = picture.width;
        canvas.height = picture.height;
      }
      context.drawImage(picture, 0, 0);
      picture.close();
      due = Math.max(due + 1000 / fps, now - 1000 / fps);
    } else {
      playing = false;
    }
  }
  if (stopped) due = now;
  tell(live);
  requestAnimationFrame(play);
}

function tell(live) {
  let text = "";
  if (status.state === "idle") text = "Say what you want to see, and press Start.";
  else if (status.state === "paused") text = "Paused.";
  else if (status.state === "failed") text = `It stopped: ${status.failure}`;
  else if (status.state === "ended" && !waiting.length) text = "Ended.";
  else if (status.state === "stopping") text = "Stopping after this chunk.";
  else if (live && !playing) text = "Gathering pictures: they are made more slowly than they play.";
  if (live && !playing && !status.seconds) text = "Beginning.";
  if ($("note").textContent !== text) $("note").textContent = text;
}

// ---- controls ----

function told(news) {
  status = news;
  const busy = ["making", "paused", "stopping"].includes(news.state);
  $("start").disabled = busy;
  for (const id of ["pause", "stop", "change"]) $(id).disabled = !busy || news.state === "stopping";
  $("pause").textContent = news.state === "paused" ? "Go on" : "Pause";
  $("seconds").textContent = `${(news.seconds ?? 0).toFixed(1)} s`;
  $("fps").textContent = news.fps ? `${news.fps} frames/s, plays at ${fps}` : "–";
  $("chunk").textContent = news.chunk_seconds ? `${news.chunk_seconds.toFixed(2)} s` : "–";
  $("viewers").textContent = news.viewers;
  $("download").hidden = !news.seconds;
  const scenes = news.scenes ?? [];
  $("scenes").replaceChildren(...scenes.map(sceneLine));
  if (scenes.length) canvas.setAttribute("aria-label", `Video: ${scenes.at(-1).prompt}`);
}

function sceneLine(scene, number) {
  const line = document.createElement("li");
  const when = document.createElement("span");
  when.textContent = number ? `${scene.at.toFixed(1)} s, ${scene.how}: ` : "0.0 s: ";
  line.append(when, scene.prompt);
  return line;
}

function start() {
  return ask("start", { prompt: $("prompt").value, seed: Number($("seed").value || NaN) });
}

function change() {
  return ask("change", { prompt: $("prompt").value, how: $("how").value });
}

function pause() {
  return ask("pause", { paused: status.state !== "paused" });
}

async function begin() {
  const response = await fetch(address("offer"));
  if (response.ok) {
    const offer = await response.json();
    fps = offer.fps;
    $("prompt").value = offer.prompt;
    $("seed").value = offer.seed;
    canvas.width = offer.width;
    canvas.height = offer.height;
    for (const how of offer.hows) $("how").append(new Option(how));
    $("how").value = "recache";
  }
  $("download").href = address("download");
  $("how-help").textContent = HOWS[$("how").value] ?? "";
  $("how").addEventListener("change", () => ($("how-help").textContent = HOWS[$("how").value] ?? ""));
  $("form").addEventListener("submit", (event) => (event.preventDefault(), start()));
  $("change").addEventListener("click", change);
  $("pause").addEventListener("click", pause);
  $("stop").addEventListener("click", () => ask("stop", {}));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey && event.key === "Enter") {
      event.preventDefault();
      if ($("start").disabled) change();
      else start();
    } else if (event.key === " " && event.target === document.body && !$("pause").disabled) {
      event.preventDefault();
      pause();
    }
  });
  requestAnimationFrame(play);
  follow();
}

begin();
