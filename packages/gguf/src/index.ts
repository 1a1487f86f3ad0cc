export { dequantize } from "./dequantize.js";
export { GgufError, type GgufErrorCode } from "./gguf-error.js";
export { GgufFile } from "./gguf-file.js";
export { quantize } from "./quantize.js";
export type { GgufTensor } from "./tensor-table.js";
export { type TensorType, type TensorTypeInfo, tensorTypes } from "./tensor-type.js";
export type { GgufValue, ScalarType } from "./value-type.js";
export { type GgufContent, type TensorToWrite, writeGguf } from "./write-gguf.js";
export type { WriteValue } from "./write-value.js";
