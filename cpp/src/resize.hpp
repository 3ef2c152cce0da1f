// THE resize, in whole numbers: the same bits as destseg_deploy/data/resize.py.
//
// Weights are whole multiples of 2^-16 and each row sums to 2^16, so a sum over 8-bit pixels stays
// below 2^24 and rounding is an added half and a shift. What Python computes in float32 without
// rounding is computed here in 32-bit integers.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "spec.hpp"

namespace destseg_core {

// The weights of one axis, without the zeros around them.
struct Weights {
  struct Row {
    int first;        // source pixel of the first weight
    int count;
    std::size_t at;   // of the first weight in `values`
  };
  int source = 0, target = 0;
  std::vector<Row> rows;
  std::vector<std::uint32_t> values;  // in units of 2^-16
};

// Both at least 1 and at most kMaxSide.
Weights resize_weights(int source, int target);

// The newest 32 pairs of sizes, shared by threads.
class WeightCache {
 public:
  std::shared_ptr<const Weights> get(int source, int target);

 private:
  std::mutex mutex_;
  std::vector<std::shared_ptr<const Weights>> kept_;
};

// Pixels of one frame, interleaved without gaps.
struct Pixels {
  Size size;
  int channels = 3;
  std::vector<std::uint8_t> bytes;
};

// Resize `source` into `target`; both may not be the same object.
void resize_width(const Pixels &source, const Weights &weights, Pixels &target);
void resize_height(const Pixels &source, const Weights &weights, Pixels &target);

}  // namespace destseg_core
