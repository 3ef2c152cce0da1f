// libFuzzer: a spec from any bytes. It is read, or refused with one line.
//
// Half of the mutations replace a whole value and leave the rest of the JSON as it is: with bytes
// changed at random alone, one in a million inputs is a valid spec with another size.
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine_record.hpp"
#include "error.hpp"
#include "spec.hpp"

namespace {

// Where a number or word begins and ends, at or after a place; both the text's end without one.
std::pair<std::size_t, std::size_t> scalar_at(const std::string &text, std::size_t at) {
  const auto part = [&](std::size_t i) {
    return std::isalnum(static_cast<unsigned char>(text[i])) || text[i] == '.' || text[i] == '-';
  };
  while (at < text.size() && !part(at)) ++at;
  while (at > 0 && part(at - 1)) --at;
  std::size_t end = at;
  while (end < text.size() && part(end)) ++end;
  return {at, end};
}

std::string any_value(std::minstd_rand &random) {
  const std::vector<std::string> values = {
      "0",    "1",    "2",   "-1",     "7",      "255",   "1080", "65535", "65536", "65537",
      "null", "true", "0.5", "1e308",  "1e-400", "NaN",   "[]",   "{}",    "\"\"",  "4294967297",
      "int8", "fp16", "x",   "engine", "onnx",   "2.0",   "-0",   "1e400", "[0.5]", "network"};
  if (random() % 2 == 0) return std::to_string(random() % 70000);
  return values[random() % values.size()];
}

}  // namespace

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t *data, std::size_t size, std::size_t most);

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t *data, std::size_t size,
                                               std::size_t most, unsigned seed) {
  std::minstd_rand random(seed);
  if (size == 0 || random() % 2 == 0) return LLVMFuzzerMutate(data, size, most);
  std::string text(reinterpret_cast<const char *>(data), size);
  const auto [begin, end] = scalar_at(text, random() % size);
  text.replace(begin, end - begin, any_value(random));
  if (text.size() > most) return LLVMFuzzerMutate(data, size, most);
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  try {
    const destseg_core::Spec spec = destseg_core::spec_from_json(
        std::string(reinterpret_cast<const char *>(data), size), "spec.json");
    if (spec.input.height < 1 || spec.map.width < 1 || spec.batch.min > spec.batch.max)
      std::abort();  // what sizes buffers must have been checked
#ifdef DESTSEG_FUZZ_CONTROL
    if (spec.map.width > 5000 && spec.threshold) std::abort();  // as if that were too large
#endif
    destseg_core::check_engine(spec, {"tensorrt", "11.4.0.106", "Fake GPU", "sm_90"});
  } catch (const destseg_core::Error &error) {
    if (error.status != DESTSEG_ERROR_SPEC) std::abort();
  }
  return 0;
}
