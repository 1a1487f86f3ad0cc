/** Why the repository could not be set up, in words for whoever ran the command. */
export class SetUpError extends Error {
  name = "SetUpError";
  code = "SET_UP_FAILED";
}
