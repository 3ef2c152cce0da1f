// libFuzzer: the examples' reader of images, on any file.
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "image.h"

#ifdef DESTSEG_FUZZ_CONTROL
constexpr std::int64_t kBeyond = 1;  // one past the image
#else
constexpr std::int64_t kBeyond = 0;
#endif

// The first and the last byte of the view.
void touch(const destseg_frame &frame) {
  const std::int64_t channels = frame.format == DESTSEG_GREY8 ? 1 : frame.format == DESTSEG_BGRA8 ? 4 : 3;
  const std::int64_t row = channels * frame.width;
  const std::int64_t stride = frame.stride == 0 ? row : frame.stride;
  volatile std::uint8_t first = frame.pixels[0];
  volatile std::uint8_t last = frame.pixels[stride * (frame.height - 1) + row - 1 + kBeyond];
  (void)first, (void)last;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  static const std::string path = "/tmp/destseg-fuzz-" + std::to_string(getpid()) + ".image";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(data), static_cast<std::streamsize>(size));
  image read;
  if (image_read(path.c_str(), &read) == nullptr) {
    touch(read.frame);
    free(read.memory);
  }
  return 0;
}
