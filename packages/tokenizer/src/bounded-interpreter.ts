import { Environment, Interpreter, Template } from "@huggingface/jinja";

/** What we use of the library's interpreter; its own declarations do not resolve under Node's module rules. */
interface JinjaInterpreter {
  run(program: unknown): { value: unknown };
  evaluate(statement: unknown, environment: unknown): { value: unknown };
}
const JinjaInterpreter = Interpreter as unknown as new (environment: unknown) => JinjaInterpreter;

// Room for a chat of tens of thousands of messages, and a few seconds at most. An item of a loop costs as much as twenty
// expressions, even when the loop does nothing.
const maxSteps = 5_000_000;
const stepsPerItem = 20;
const maxListLength = 1_000_000;
const maxStringLength = 1 << 26;

/**
 * Runs a template that may come from anywhere: one that loops for ever, or that grows a list or a string without end,
 * raises an error instead of hanging or exhausting the memory.
 */
export class BoundedInterpreter extends JinjaInterpreter {
  readonly #iterables: ReadonlySet<unknown>;
  #steps = 0;

  /**
   * @param variables what the template sees beside Jinja's own names
   * @param iterables the nodes whose values the program's `for` statements walk
   */
  constructor(variables: Readonly<Record<string, unknown>>, iterables: ReadonlySet<unknown>) {
    const environment = new Environment();
    for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value);
    super(environment);
    this.#iterables = iterables;
  }

  override evaluate(statement: unknown, environment: unknown): { value: unknown } {
    this.#count(1);
    const result = super.evaluate(statement, environment);
    const { value } = result;
    if (typeof value === "string") {
      if (value.length > maxStringLength) throw new Error(`a string of more than ${maxStringLength} characters`);
    } else if (Array.isArray(value)) {
      if (value.length > maxListLength) throw new Error(`a list of more than ${maxListLength} items`);
      if (this.#iterables.has(statement)) this.#count(value.length * stepsPerItem);
    }
    return result;
  }

  #count(steps: number): void {
    this.#steps += steps;
    if (this.#steps > maxSteps) throw new Error(`more than ${maxSteps} steps`);
  }
}

const clock = new Template("{{ strftime_now(format) }}");

/** Jinja's constants under both of their spellings, and the functions that chat templates may call. */
const globals: Readonly<Record<string, unknown>> = {
  true: true,
  false: false,
  none: null,
  True: true,
  False: false,
  None: null,
  range,
  raise_exception(message: unknown): never {
    throw new Error(String(message));
  },
  strftime_now: (format: unknown) => clock.render({ format }),
};

function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= maxListLength)) throw new Error(`range() of ${length} items; the most is ${maxListLength}`);
  return Array.from({ length }, (_, index) => start + index * step);
}
