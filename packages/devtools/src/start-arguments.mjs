const SAMPLE_PROMPT = "Tell me a story about a fox named Mia.";

/**
 * The command line of the CLI for a command line of `npm start`: with a prompt it answers and exits; without one it
 * opens a chat on a terminal and answers a sample prompt anywhere else. Everything given is passed on.
 */
export function cliArguments(args, terminal) {
  if (args.some(isPrompt)) return ["run", ...args];
  return terminal ? ["chat", ...args] : ["run", "-p", SAMPLE_PROMPT, ...args];
}

function isPrompt(arg) {
  return arg === "--prompt" || arg.startsWith("--prompt=") || /^-p/.test(arg);
}
