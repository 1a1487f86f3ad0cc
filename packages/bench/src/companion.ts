import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

/** One of the programs beside this one, as a process that answers messages one by one until it is ended. */
export class Companion {
  readonly #name: string;
  readonly #process: ChildProcess;
  readonly #ended: Promise<string>;

  constructor(name: string, environment: NodeJS.ProcessEnv = {}) {
    this.#name = name;
    const program = fileURLToPath(new URL(`./${name}.js`, import.meta.url));
    this.#process = fork(program, { env: { ...process.env, ...environment } });
    this.#ended = new Promise((resolve) => {
      this.#process.once("error", (error) => resolve(error.message));
      this.#process.once("exit", (code, signal) => resolve(`it ended with ${signal ?? code}`));
    });
  }

  /**
   * The answer to a message, both plain data.
   * @throws Error if the process ends before it answers.
   */
  async ask<Answer>(message: unknown): Promise<Answer> {
    const answer = new Promise<Answer>((resolve) => this.#process.once("message", resolve));
    this.#process.send(message as object);
    const failed = this.#ended.then((why) => Promise.reject(new Error(`${this.#name}: ${why}`)));
    return Promise.race([answer, failed]);
  }

  /** Ends the process and waits until its memory is free. */
  async end(): Promise<void> {
    if (this.#process.connected) this.#process.disconnect();
    await this.#ended;
  }
}

/** In such a program: answers each message by `answer`, one after another, and ends with the one that asks. */
export function answerMessages<Message>(answer: (message: Message) => Promise<unknown>, end = async () => {}): void {
  process.on("message", async (message) => process.send!(await answer(message as Message)));
  process.once("disconnect", async () => {
    await end();
    process.exit();
  });
}
