import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { characterOfByte } from "./byte-alphabet.js";
import { tokenType } from "./token-type.js";
import { badValue, metadataKeys, type TokenizerConfig } from "./tokenizer-config.js";
import { shown, TokenizerError } from "./tokenizer-error.js";

/** How Qwen2 cuts text before the merges: contractions, words, single digits, punctuation, line ends, white space. */
const qwen2Pattern =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

const utf8 = new TextEncoder();

/** Byte-level BPE over the normal tokens of a vocabulary; what it is given is text, whatever it looks like. */
export class BytePairEncoder {
  readonly #tokenizer: HuggingFaceTokenizer;
  readonly #missingBytes: ReadonlySet<number>;

  /** @throws {TokenizerError} `bad-value` for a merge that is not two tokens whose union is a token */
  constructor(config: TokenizerConfig) {
    const vocabulary = normalTokens(config);
    checkMerges(config.merges, vocabulary);
    const missing = characterOfByte.flatMap((character, byte) => (character in vocabulary ? [] : [byte]));
    this.#missingBytes = new Set(missing);
    this.#tokenizer = new HuggingFaceTokenizer(
      {
        added_tokens: [],
        normalizer: { type: "NFC" },
        pre_tokenizer: {
          type: "Sequence",
          pretokenizers: [
            { type: "Split", pattern: { Regex: qwen2Pattern }, behavior: "Isolated", invert: false },
            { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false },
          ],
        },
        post_processor: null,
        decoder: null,
        model: { type: "BPE", vocab: vocabulary, merges: config.merges, ignore_merges: false },
      },
      {},
    );
  }

  /** @throws {TokenizerError} `unencodable-text` when the vocabulary has no token for a byte of the text */
  encode(text: string): number[] {
    if (this.#missingBytes.size > 0) this.#checkBytes(text);
    return this.#tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  #checkBytes(text: string): void {
    const missing = utf8.encode(text.normalize("NFC")).find((byte) => this.#missingBytes.has(byte));
    if (missing === undefined) return;
    const hexadecimal = missing.toString(16).padStart(2, "0");
    const message =
      `The vocabulary has no token for the byte 0x${hexadecimal} in ${shown(text)}; ` +
      `${metadataKeys.tokens} of a byte-level tokenizer should hold all 256. Convert the model again.`;
    throw new TokenizerError("unencodable-text", message, { key: metadataKeys.tokens, value: text });
  }
}

/** Text to id; without a prototype, as "constructor" and "__proto__" are ordinary tokens. */
function normalTokens(config: TokenizerConfig): Record<string, number> {
  const vocabulary: Record<string, number> = Object.create(null);
  const notText: readonly number[] = [tokenType.control, tokenType.userDefined, tokenType.unused];
  for (const [id, token] of config.tokens.entries()) {
    if (!notText.includes(config.tokenTypes[id]!)) vocabulary[token] ??= id;
  }
  return vocabulary;
}

/** A merge into something that is no token would make text vanish. */
function checkMerges(merges: readonly string[], vocabulary: Readonly<Record<string, number>>): void {
  for (const [index, merge] of merges.entries()) {
    const space = merge.indexOf(" ");
    const left = merge.slice(0, space);
    const right = merge.slice(space + 1);
    if (space <= 0 || !(left in vocabulary) || !(right in vocabulary) || !(left + right in vocabulary)) {
      const message = `is ${shown(merge)}, which is not two tokens, separated by a space, whose union is a token`;
      throw badValue(`${metadataKeys.merges}[${index}]`, merge, message);
    }
  }
}
