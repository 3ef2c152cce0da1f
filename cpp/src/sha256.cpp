#include "sha256.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <vector>

#include "error.hpp"

namespace destseg_core {
namespace {

constexpr std::uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotated(std::uint32_t value, int bits) {
  return (value >> bits) | (value << (32 - bits));
}

std::uint32_t big_endian(const unsigned char *bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 |
         std::uint32_t{bytes[2]} << 8 | std::uint32_t{bytes[3]};
}

}  // namespace

void Sha256::block(const unsigned char *data) {
  std::uint32_t w[64];
  for (int i = 0; i < 16; ++i) w[i] = big_endian(data + 4 * i);
  for (int i = 16; i < 64; ++i) {
    const std::uint32_t low = w[i - 15], high = w[i - 2];
    w[i] = w[i - 16] + (rotated(low, 7) ^ rotated(low, 18) ^ low >> 3) + w[i - 7] +
           (rotated(high, 17) ^ rotated(high, 19) ^ high >> 10);
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (int i = 0; i < 64; ++i) {
    const std::uint32_t first = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) +
                                ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
    const std::uint32_t second =
        (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
  }
  const std::uint32_t added[8] = {a, b, c, d, e, f, g, h};
  for (std::size_t i = 0; i < 8; ++i) state_[i] += added[i];
}

void Sha256::update(const unsigned char *data, std::size_t size) {
  std::size_t filled = static_cast<std::size_t>(size_ % 64);
  size_ += size;
  while (size > 0) {
    if (filled == 0 && size >= 64) {  // whole blocks need no copy
      block(data);
      data += 64, size -= 64;
      continue;
    }
    const std::size_t taken = std::min(size, 64 - filled);
    std::memcpy(pending_.data() + filled, data, taken);
    filled += taken, data += taken, size -= taken;
    if (filled == 64) block(pending_.data()), filled = 0;
  }
}

std::string Sha256::finish() {
  const std::uint64_t bits = size_ * 8;
  unsigned char tail[72] = {0x80};
  const std::size_t zeros = (119 - size_ % 64) % 64;  // up to byte 56 of the last block
  for (std::size_t i = 0; i < 8; ++i)
    tail[1 + zeros + i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
  update(tail, 1 + zeros + 8);
  std::string text;
  for (const std::uint32_t word : state_)
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  return text;
}

std::string sha256_of_file(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw spec_error(path.u8string() + ": cannot be read. Check its permissions.");
  Sha256 digest;
  std::vector<char> bytes(1 << 16);
  while (file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())), file.gcount() > 0)
    digest.update(reinterpret_cast<const unsigned char *>(bytes.data()),
                  static_cast<std::size_t>(file.gcount()));
  if (file.bad()) throw spec_error(path.u8string() + ": cannot be read. Check the disk.");
  return digest.finish();
}

}  // namespace destseg_core
