import { type SpawnOptions, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { demoAdapterPaths, demoModelPath } from "@niwaki/demo-model";
import { demoAnswers, fixturePath, goldens, klDivergence } from "@niwaki/testing";
import { afterAll, describe, expect, it } from "vitest";

const program = fileURLToPath(new URL("../bin/niwaki.js", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "niwaki-cli-"));
afterAll(() => rmSync(folder, { recursive: true }));

interface Result {
  code: number | null;
  out: string;
  err: string;
}

function niwaki(args: string[], input = "", options: SpawnOptions = {}): Promise<Result> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, NIWAKI_BACKEND: "", NIWAKI_CUDA_LIBRARY: "/nowhere/libniwaki-cuda.so" };
    const child = spawn(process.execPath, [program, ...args], { env, ...options, stdio: "pipe" });
    let out = "";
    let err = "";
    child.stdout!.setEncoding("utf8").on("data", (text) => (out += text));
    child.stderr!.setEncoding("utf8").on("data", (text) => (err += text));
    child.on("error", reject).on("close", (code) => resolve({ code, out, err }));
    child.stdin!.on("error", () => {}).end(input);
  });
}

const BEAR = "Where does a bear live?";
const BEAR_ANSWER = "A bear lives in the forest.";

describe("niwaki run", () => {
  it("writes the answer, and nothing else, to standard output", async () => {
    const { code, out, err } = await niwaki(["run", "-p", BEAR, "--no-think"]);
    expect([code, out]).toEqual([0, `${BEAR_ANSWER}\n`]);
    expect(err).toMatch(/^\d+ tokens in, \d+ out, first after \d+ ms, [\d.]+ tokens\/s, loaded in \d+ ms\n$/);
  });

  it("takes the prompt from standard input", async () => {
    expect((await niwaki(["run", "--no-think"], `${BEAR}\n`)).out).toBe(`${BEAR_ANSWER}\n`);
  });

  it("keeps thoughts out of the answer", async () => {
    const { out } = await niwaki(["run", "-p", BEAR]);
    expect(out).not.toContain("<think>");
  });

  it("prints one JSON object with --json", async () => {
    const answer = demoAnswers().find(({ messages, minMargin, enableThinking }) => {
      return messages?.length === 1 && !enableThinking && minMargin > 0.05;
    })!;
    const { out } = await niwaki(["run", "-p", answer.messages![0]!.content!, "--no-think", "--json"]);
    expect(JSON.parse(out)).toMatchObject({
      text: answer.answer,
      tokenIds: answer.outputIds,
      promptTokens: answer.promptIds.length,
      finishReason: "stop",
    });
  });

  it("continues raw text", async () => {
    const answer = demoAnswers().find(({ messages, minMargin }) => messages === null && minMargin > 0.05)!;
    const { out } = await niwaki(["run", "--raw", "-p", answer.prompt, "--json"]);
    expect(JSON.parse(out).tokenIds).toEqual(answer.outputIds);
  });

  it("passes the flags on", async () => {
    const flags = [
      "--backend",
      "auto",
      "--temp",
      "1.5",
      "--seed",
      "3",
      "-n",
      "3",
      "-t",
      "1",
      "-c",
      "128",
      "--kv",
      "f32",
      "--json",
    ];
    const [a, b] = await Promise.all([1, 2].map(() => niwaki(["run", "-p", BEAR, ...flags])));
    expect(JSON.parse(a!.out)).toMatchObject({
      completionTokens: 3,
      finishReason: "length",
      device: { backend: "cpu", threads: 1 },
    });
    expect(JSON.parse(a!.out).tokenIds).toEqual(JSON.parse(b!.out).tokenIds);
  });

  it.each([
    [["run", "-p", "x", "--temp", "hot"], /--temp.*must be a number/s],
    [["run", "-p", "x", "--top-p", "0"], /topP.*above 0/],
    [["run", "-p", "x", "--tier", "mmx"], /mmx/],
    [["run", "-p", "x", "-c", "9999"], /contextLength.*2048/],
    [["run", "-p", "x", "-m", "missing.gguf"], /missing\.gguf/],
    [["run", "-p", "x", "--kv", "q4"], /q4.*f16, f32, q8/s],
    [["run", "-p", "x", "--backend", "tpu"], /tpu.*cpu, cuda, auto/s],
    [["run", "-p", "x", "--backend", "cuda"], /nowhere.*cannot be loaded/s],
    [["run", "-p", "x", "--backend", "cuda", "-t", "2"], /threads is 2.*leave it out/],
    [["run", "-p", "x", "--backend", "cpu", "--gpu", "1"], /gpu is 1.*"cuda" or "auto"/],
    [["run", "-p", "x", "--gpu", "first"], /--gpu.*must be a whole number/s],
    [["walk"], /walk/],
  ])("says what is wrong: %j", async (args, message) => {
    const { code, out, err } = await niwaki(args);
    expect([code, out]).toEqual([1, ""]);
    expect(err).toMatch(message);
  });
});

describe("niwaki chat", () => {
  it("answers one message a line, and remembers", async () => {
    const { out } = await niwaki(["chat", "--no-think"], "My name is Tom.\nWhat is my name?\n/exit\n");
    expect(out.trim().split("\n").at(-1)).toContain("Tom");
  });

  it("forgets with /clear, and goes on after a message that is too long", async () => {
    const { code, out, err } = await niwaki(
      ["chat", "--no-think", "-c", "64"],
      `${"a b ".repeat(99)}\n/clear\n${BEAR}\n`,
    );
    expect([code, out]).toEqual([1, `${BEAR_ANSWER}\n`]);
    expect(err).toMatch(/context of 64/);
  });
});

describe("niwaki logits", () => {
  it("writes the logits of every position, in chunks of any size", async () => {
    const golden = goldens().find(({ name }) => name.startsWith("q1-tied"))!;
    const tokens = join(folder, "tokens.json");
    writeFileSync(tokens, JSON.stringify(golden.tokens));
    const run = async (...flags: string[]) => {
      const out = join(folder, `logits${flags.join("").replaceAll("/", "")}.f32`.slice(-200));
      const { code, err } = await niwaki(["logits", golden.model, "--tokens", tokens, "--out", out, ...flags]);
      expect([code, err]).toEqual([0, ""]);
      return readFileSync(out);
    };
    const whole = await run();
    expect(whole.byteLength).toBe(golden.logits.byteLength);
    const ours = new Float32Array(whole.buffer.slice(whole.byteOffset, whole.byteOffset + whole.byteLength));
    expect(klDivergence(golden.logits, ours, golden.shape[1]).mean).toBeLessThan(golden.llamaCppMeanKl!);
    expect(Buffer.compare(await run("--chunk", "1", "-t", "3"), whole)).toBe(0);
    expect(Buffer.compare(await run("--tier", "portable"), whole)).toBe(0);
    expect(Buffer.compare(await run("--kv", "f32"), whole)).not.toBe(0);
    const mixed = await run(...golden.mix!.of.flatMap(([path, weight]) => ["--lora", `${path}:${weight}`]));
    const adapted = new Float32Array(mixed.buffer.slice(mixed.byteOffset, mixed.byteOffset + mixed.byteLength));
    expect(klDivergence(golden.mix!.logits, adapted, golden.shape[1]).mean).toBeLessThan(2e-4);
    expect(Buffer.compare(await run("--kv", "q8"), whole)).not.toBe(0);
  });

  it("refuses what is no array of numbers", async () => {
    const tokens = join(folder, "words.json");
    writeFileSync(tokens, '["a"]');
    const { code, err } = await niwaki(["logits", demoModelPath, "--tokens", tokens, "--out", join(folder, "x")]);
    expect([code, err]).toEqual([1, `niwaki: ${tokens} must hold a JSON array of numbers, the token ids.\n`]);
  });
});

describe("niwaki merge", () => {
  const merged = join(folder, "merged.gguf");

  it("writes a model that answers as the base with its adapters, and says what was lost", async () => {
    const golden = goldens().find(({ name }) => name.startsWith("q1-tied"))!;
    const mix = golden.mix!.of.flatMap(([path, weight]) => ["--lora", `${path}:${weight}`]);
    const { code, out, err } = await niwaki(["merge", golden.model, ...mix, "-o", merged, "--type", "F16"]);
    expect([code, out]).toEqual([0, ""]);
    expect(err).toMatch(/^14 tensors, Q1_0 to F16: changed by .*, written to within .*, 0\.\d+% of the change/);
    const tokens = join(folder, "merged-tokens.json");
    writeFileSync(tokens, JSON.stringify(golden.tokens));
    const logits = join(folder, "merged.f32");
    await niwaki(["logits", merged, "--tokens", tokens, "--out", logits, "--kv", "f32"]);
    const ours = new Float32Array(Uint8Array.from(readFileSync(logits)).buffer);
    expect(klDivergence(golden.mix!.logits, ours, golden.shape[1]).mean).toBeLessThan(1e-5);
  });

  it("refuses 1-bit weights unless it is told a type", async () => {
    const flags = ["--lora", demoAdapterPaths.pirate, "-o", join(folder, "refused.gguf")];
    const { code, err } = await niwaki(["merge", demoModelPath, ...flags]);
    expect(code).toBe(1);
    expect(err).toMatch(/^niwaki: blk\.0\.attn_q\.weight: .* a 1-bit weight is one of two values.*name a type/);
    expect((await niwaki(["merge", demoModelPath, ...flags, "--type", "Q3"])).err).toMatch(/Q3.*F32, F16, BF16/s);
  });
});

describe("niwaki tokenize", () => {
  it("writes the ids of JSON strings, one a line", async () => {
    const answers = demoAnswers().slice(0, 5);
    const { out } = await niwaki(
      ["tokenize", demoModelPath],
      answers.map(({ prompt }) => JSON.stringify(prompt)).join("\n"),
    );
    expect(
      out
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line)),
    ).toEqual(answers.map(({ promptIds }) => promptIds));
  });

  it("takes control tokens as text with --plain", async () => {
    const [control, plain] = await Promise.all(
      [[], ["--plain"]].map((flags) => niwaki(["tokenize", demoModelPath, ...flags], '"<|im_end|>"\n')),
    );
    expect(JSON.parse(control!.out)).toEqual([2041]);
    expect(JSON.parse(plain!.out).length).toBeGreaterThan(1);
  });

  it("names the line that is no JSON string", async () => {
    const { code, err } = await niwaki(["tokenize", demoModelPath], '"a"\n17\n');
    expect([code, err]).toEqual([1, "niwaki: line 2 of standard input is not a JSON string.\n"]);
  });
});

describe("niwaki inspect", () => {
  it("shows the shape, the types and the memory", async () => {
    const { code, out } = await niwaki(["inspect", demoModelPath, "-c", "1000"]);
    expect(code).toBe(0);
    expect(out).toContain("layers        4");
    expect(out).toContain("4 query, 2 key/value, of 64");
    // 2 × 4 layers × 2 heads × 64 × 2 bytes × 1000 tokens; as q8 64 bytes and a scale of 4 for each head.
    expect(out).toContain("KV cache      2.05 MB as f16, 4.10 MB as f32, 1.09 MB as q8");
    expect(out).toContain("runs: yes");
  });

  it("gives the same as JSON", async () => {
    const found = JSON.parse((await niwaki(["inspect", fixturePath("mixed-types.gguf"), "--json"])).out);
    expect(found.shape).toMatchObject({ layers: 2, hidden: 128, kvHeads: 1, vocabulary: 1003, tied: true });
    expect(found.types.map(({ type }: { type: string }) => type).sort()).toEqual(
      ["BF16", "F16", "F32", "Q1_0", "Q2_0", "Q4_0", "Q8_0"].sort(),
    );
    expect(found).toMatchObject({ runs: true, problems: [] });
  });
});

describe("niwaki doctor", () => {
  it("says what models can run on, and what is missing", async () => {
    const { code, out } = await niwaki(["doctor"]);
    expect(code).toBe(0);
    expect(out).toMatch(/^Node\.js v.*\n\nCPU\n.*\n {2}kernels .*portable\n {2}usable {5}yes\n\nCUDA\n/);
    expect(out).toMatch(/\n {2}kernels {4}\/nowhere\/.*\n {2}usable {5}no\n.*cannot be loaded.*No such file/s);
  });

  it("gives the same as JSON", async () => {
    const { cpu, cuda } = JSON.parse((await niwaki(["doctor", "--json"])).out);
    expect(cpu.kernels.at(-1)).toBe("portable");
    expect(cuda).toMatchObject({ gpus: [], library: "/nowhere/libniwaki-cuda.so" });
  });
});

describe("niwaki trace", () => {
  it("writes a timeline of answers that ran together", async () => {
    const out = join(folder, "timeline.json");
    const { code, err } = await niwaki(["trace", "-o", out, "--no-think", "-p", BEAR, "What is 3 + 4?"]);
    expect(code).toBe(0);
    expect(err).toMatch(/^\d+ steps, 2 answers, \d+ tokens; [\d.]+ ms a step outside the kernels; written to /);
    const { traceEvents } = JSON.parse(readFileSync(out, "utf8")) as {
      traceEvents: { name: string; tid: number; ts: number; args: { start: number; end: number } }[];
    };
    const decodes = (tid: number) => traceEvents.filter((event) => event.tid === tid && event.name === "decode");
    // Both answers stand in the same steps.
    expect(decodes(1).reduce((tokens, { args }) => tokens + args.end - args.start, 0)).toBeGreaterThan(3);
    expect(decodes(2).map(({ ts }) => ts)).toContain(decodes(1)[0]!.ts);
  });
});
