// Compiled without contraction to fused multiply-add: weights must round as NumPy's do.
#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

namespace destseg_core {
namespace {

constexpr double kScale = 1 << 16;
constexpr double kFinerThanScale = (1 << 22) / kScale;  // Pillow's weights, per ours
constexpr double kNoise = 1e-6;

// NumPy's sum along a contiguous axis: pairwise, eight lanes in blocks of up to 128. Another order
// changes the last bit of a weight and could change which of two near remainders goes first; no
// pair of sizes where it does was found among 535, but this way none needs to be looked for.
double numpy_sum(const double *values, std::size_t count) {
  if (count < 8) {
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }
  if (count > 128) {
    const std::size_t half = count / 2 / 8 * 8;
    return numpy_sum(values, half) + numpy_sum(values + half, count - half);
  }
  double lane[8];
  std::copy(values, values + 8, lane);
  std::size_t i = 8;
  for (; i + 8 <= count; i += 8)
    for (std::size_t j = 0; j < 8; ++j) lane[j] += values[i + j];
  double sum = ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
               ((lane[4] + lane[5]) + (lane[6] + lane[7]));
  for (; i < count; ++i) sum += values[i];
  return sum;
}

// A row of a triangle as wide as the scale factor, normalised, in units of 2^-16.
void triangle(int source, int target, int index, std::vector<double> &row) {
  const double scale = static_cast<double>(source) / target;
  const double support = std::max(scale, 1.0);
  const double center = (index + 0.5) * scale;
  for (std::size_t j = 0; j < row.size(); ++j) {
    const double distance = (static_cast<double>(j) + 0.5 - center) / support;
    row[j] = std::max(1.0 - std::fabs(distance), 0.0);
  }
  const double sum = numpy_sum(row.data(), row.size());
  for (double &weight : row) weight = weight / sum * kScale;
}

// Round a row to whole numbers, keeping its sum: what Pillow rounds up goes up first.
class RowRounder {
 public:
  explicit RowRounder(std::size_t size) : remainder_(size), error_(size), order_(size) {}

  void round(const std::vector<double> &row, std::vector<std::uint32_t> &rounded) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const double floor = std::floor(row[i] + kNoise);
      const double fine = row[i] * kFinerThanScale;
      remainder_[i] = row[i] - floor;
      error_[i] = remainder_[i] > kNoise ? std::nearbyint(fine) - fine : -1.0;
      rounded[i] = static_cast<std::uint32_t>(floor);
    }
    const double missing = std::nearbyint(numpy_sum(remainder_.data(), row.size()));
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::size_t a, std::size_t b) { return error_[a] > error_[b]; });
    for (std::size_t i = 0; i < row.size() && static_cast<double>(i) < missing; ++i)
      ++rounded[order_[i]];
  }

 private:
  std::vector<double> remainder_, error_;
  std::vector<std::size_t> order_;
};

std::uint8_t rounded(std::uint32_t sum) { return static_cast<std::uint8_t>((sum + 32768) >> 16); }

template <int kChannels>
void resize_row(const std::uint8_t *source, const Weights &weights, std::uint8_t *target) {
  for (const Weights::Row &row : weights.rows) {
    std::uint32_t sums[kChannels] = {};
    const std::uint8_t *pixel = source + static_cast<std::ptrdiff_t>(row.first) * kChannels;
    const std::uint32_t *weight = weights.values.data() + row.at;
    for (int i = 0; i < row.count; ++i, pixel += kChannels)
      for (int c = 0; c < kChannels; ++c) sums[c] += weight[i] * pixel[c];
    for (int c = 0; c < kChannels; ++c) *target++ = rounded(sums[c]);
  }
}

std::size_t row_bytes(const Pixels &pixels) {
  return static_cast<std::size_t>(pixels.size.width) * static_cast<std::size_t>(pixels.channels);
}

void prepare(Pixels &target, const Pixels &source, Size size) {
  target.size = size;
  target.channels = source.channels;
  target.bytes.resize(size.pixels() * static_cast<std::size_t>(source.channels));
}

}  // namespace

Weights resize_weights(int source, int target) {
  const auto size = static_cast<std::size_t>(source);
  std::vector<double> row(size);
  std::vector<std::uint32_t> whole(size);
  RowRounder rounder(size);
  Weights weights{source, target, {}, {}};
  for (int index = 0; index < target; ++index) {
    triangle(source, target, index, row);
    rounder.round(row, whole);
    const auto used = [](std::uint32_t weight) { return weight != 0; };
    const auto first = std::find_if(whole.begin(), whole.end(), used);
    const auto last = std::find_if(whole.rbegin(), whole.rend(), used).base();
    weights.rows.push_back({static_cast<int>(first - whole.begin()),
                            static_cast<int>(last - first), weights.values.size()});
    weights.values.insert(weights.values.end(), first, last);
  }
  return weights;
}

std::shared_ptr<const Weights> WeightCache::get(int source, int target) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const auto &weights) {
    return weights->source == source && weights->target == target;
  });
  std::shared_ptr<const Weights> weights =
      found != kept_.end() ? *found : std::make_shared<Weights>(resize_weights(source, target));
  if (found != kept_.end()) kept_.erase(found);
  if (kept_.size() >= 32) kept_.erase(kept_.begin());
  kept_.push_back(weights);
  return weights;
}

void resize_width(const Pixels &source, const Weights &weights, Pixels &target) {
  prepare(target, source, {source.size.height, weights.target});
  const auto resize = source.channels == 1 ? resize_row<1> : resize_row<3>;
  for (int y = 0; y < source.size.height; ++y)
    resize(source.bytes.data() + static_cast<std::size_t>(y) * row_bytes(source), weights,
           target.bytes.data() + static_cast<std::size_t>(y) * row_bytes(target));
}

void resize_height(const Pixels &source, const Weights &weights, Pixels &target) {
  prepare(target, source, {weights.target, source.size.width});
  const std::size_t bytes = row_bytes(source);
  std::vector<std::uint32_t> sums(bytes);
  std::uint8_t *out = target.bytes.data();
  for (const Weights::Row &row : weights.rows) {
    std::fill(sums.begin(), sums.end(), 0);
    for (int i = 0; i < row.count; ++i) {
      const std::uint8_t *in =
          source.bytes.data() + static_cast<std::size_t>(row.first + i) * bytes;
      const std::uint32_t weight = weights.values[row.at + static_cast<std::size_t>(i)];
      for (std::size_t x = 0; x < bytes; ++x) sums[x] += weight * in[x];
    }
    for (const std::uint32_t sum : sums) *out++ = rounded(sum);
  }
}

}  // namespace destseg_core
