// libFuzzer: the examples' reader of images, on any file.
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "pnm.h"

#ifdef DESTSEG_FUZZ_CONTROL
constexpr std::size_t kLast = 0;  // one past the image
#else
constexpr std::size_t kLast = 1;
#endif

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  static const std::string path = "/tmp/destseg-fuzz-" + std::to_string(getpid()) + ".ppm";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(data), static_cast<std::streamsize>(size));
  pnm_image image;
  if (pnm_read(path.c_str(), &image) == nullptr) {
    volatile std::uint8_t last = image.pixels[static_cast<std::size_t>(image.width) *
                                                  static_cast<std::size_t>(image.height) *
                                                  static_cast<std::size_t>(image.channels) - kLast];
    (void)last;
    free(image.pixels);
  }
  return 0;
}
