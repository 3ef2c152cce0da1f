// libFuzzer: a spec from any bytes. It is read, or refused with one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "engine_record.hpp"
#include "error.hpp"
#include "spec.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  try {
    const destseg_core::Spec spec = destseg_core::spec_from_json(
        std::string(reinterpret_cast<const char *>(data), size), "spec.json");
    if (spec.input.height < 1 || spec.map.width < 1 || spec.batch.min > spec.batch.max)
      std::abort();  // what sizes buffers must have been checked
    destseg_core::check_engine(spec, {"tensorrt", "11.4.0.106", "Fake GPU", "sm_90"});
  } catch (const destseg_core::Error &error) {
    if (error.status != DESTSEG_ERROR_SPEC) std::abort();
  }
  return 0;
}
