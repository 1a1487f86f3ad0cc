/** Tokenizer part of a random model's metadata. */
export interface RandomTokenizer {
  tokens: string[];
  /** 1 normal, 3 control. */
  tokenTypes: number[];
  merges: string[];
  bosId: number;
  eosId: number;
  padId: number;
  chatTemplate: string;
}

const controlTokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

const chatTemplate =
  "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/**
 * A valid byte-level BPE tokenizer of exactly `vocabulary` tokens: the 256 bytes, then pairs of bytes and after them
 * triples, each with its merge, and three control tokens at the end.
 *
 * @throws RangeError when `vocabulary` has no room for the bytes and the control tokens, or is past all triples.
 */
export function randomTokenizer(vocabulary: number): RandomTokenizer {
  const merged = vocabulary - 256 - controlTokens.length;
  if (!Number.isInteger(merged) || merged < 0 || merged > 256 ** 2 + 256 ** 3) {
    throw new RangeError(`a random tokenizer has 259 to 16,843,011 tokens, not ${vocabulary}`);
  }
  const tokens = byteAlphabet();
  const merges: string[] = [];
  for (const [left, right] of mergePairs(tokens.slice())) {
    if (merges.length === merged) break;
    merges.push(`${left} ${right}`);
    tokens.push(left + right);
  }
  tokens.push(...controlTokens);
  return {
    tokens,
    tokenTypes: tokens.map((_, id) => (id < vocabulary - controlTokens.length ? 1 : 3)),
    merges,
    bosId: vocabulary - 3,
    eosId: vocabulary - 1,
    padId: vocabulary - 3,
    chatTemplate,
  };
}

/** Pairs of bytes with the commonest first, then those pairs with a third byte, so that every left part is a token. */
function* mergePairs(alphabet: readonly string[]): Generator<[string, string]> {
  const common = [..." etaoinshrdlucmfwypvbgkqjxz"].map((c) => c.charCodeAt(0));
  const order = [...new Set([...common, ...alphabet.keys()])].map((byte) => alphabet[byte]!);
  const pairs: string[] = [];
  for (let outer = 0; outer < order.length; outer++) {
    const square: [string, string][] = [];
    for (let inner = 0; inner < outer; inner++) {
      square.push([order[outer]!, order[inner]!], [order[inner]!, order[outer]!]);
    }
    square.push([order[outer]!, order[outer]!]);
    for (const pair of square) {
      pairs.push(pair.join(""));
      yield pair;
    }
  }
  for (const pair of pairs) {
    for (const third of order) yield [pair, third];
  }
}

/** The character that stands for each byte in a byte-level BPE: itself where it is visible, else from U+0100 on. */
function byteAlphabet(): string[] {
  const visible = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  let hidden = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(visible(byte) ? byte : hidden++));
}
