/** The path of the shared object, which @niwaki/kernels-native loads. */
module.exports = require.resolve("./libniwaki-cuda.so");
