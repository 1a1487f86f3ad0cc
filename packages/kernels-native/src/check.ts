import { KernelError } from "./error.js";

/** The largest value of what C++ counts in int32. */
export const maxInt32 = 2 ** 31 - 1;

/** The error of a bad argument: its name, its value, what is allowed. */
export function invalid(argument: string, value: unknown, allowed: string): KernelError {
  return new KernelError("invalid-argument", `${argument} is ${show(value)}: ${allowed}`, { argument, value });
}

export function checkInteger(argument: string, value: number, min: number, max = maxInt32): number {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw invalid(argument, value, `it must be an integer from ${min} to ${max}`);
  }
  return value;
}

export function checkMultiple(argument: string, value: number, of: number): number {
  checkInteger(argument, value, of);
  if (value % of !== 0) throw invalid(argument, value, `it must be a multiple of ${of}`);
  return value;
}

export function checkNumber(
  argument: string,
  value: number,
  allowed: string,
  test: (value: number) => boolean,
): number {
  if (typeof value !== "number" || !test(value)) throw invalid(argument, value, `it must be ${allowed}`);
  return value;
}

export function checkString(argument: string, value: string): string {
  if (typeof value !== "string" || value === "")
    throw invalid(argument, value, "it must be a string that is not empty");
  return value;
}

export function checkObject<T extends object>(argument: string, value: T): T {
  if (typeof value !== "object" || value === null) throw invalid(argument, value, "it must be an object");
  return value;
}

export function checkInstance<T>(argument: string, value: T, type: { prototype: T; name: string }): T {
  if (!(value instanceof (type as unknown as new () => object)))
    throw invalid(argument, value, `it must be ${article(type.name)}`);
  return value;
}

function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value);
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "function") return "a function";
  if (typeof value !== "object" || value === null) return String(value);
  const name = value.constructor?.name ?? "object";
  if (ArrayBuffer.isView(value) && "length" in value) return `${article(name)} of length ${value.length}`;
  return Array.isArray(value) ? `an array of length ${value.length}` : article(name);
}

function article(noun: string): string {
  return `${/^[AEIO]/i.test(noun) ? "an" : "a"} ${noun}`;
}
