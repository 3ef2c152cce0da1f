// SHA-256 (FIPS 180-4) of a file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace destseg_core {

class Sha256 {
 public:
  void update(const unsigned char *data, std::size_t size);
  // The digest in hexadecimal; nothing may be added after it.
  std::string finish();

 private:
  void block(const unsigned char *data);

  std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<unsigned char, 64> pending_{};
  std::uint64_t size_ = 0;
};

// Of a file's content. Throws Error (spec) when it cannot be read.
std::string sha256_of_file(const std::filesystem::path &path);

}  // namespace destseg_core
