// Every CUDA kernel once on aligned and once on other memory, for ThreadSanitizer to watch. Exits with 1 where a mean
// of the optimizer update is not what it is summed in one thread.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../../csrc/shade_fast.h"

namespace cuda = shade_fast::cuda;
using shade_fast::Affine;
using shade_fast::Interval;
using shade_fast::Status;

namespace {

constexpr Affine kAffine = {{2, 2, 2}, {-1, -1, -1}};

// `images` images of `elements` values, each array `shift` values away from where it would be aligned.
bool run(std::int64_t images, std::int64_t elements, std::int64_t shift) {
  const std::size_t values = static_cast<std::size_t>(images * elements + shift);
  std::vector<float> delta(values, 0.01f), momentum(values, 0.5f), gradient(values), step(images, 0.02f), mean(images);
  std::vector<std::uint8_t> clean(values, 100), pixels(values);
  std::vector<std::uint16_t> tried(values);
  std::vector<double> scratch(static_cast<std::size_t>(cuda::optimizer_update_scratch(images, elements)));
  std::vector<Interval> now(images, Interval{0, 1, 1}), next(images);
  std::vector<float> distance(images, 0.1f);
  for (std::size_t i = 0; i < values; ++i) gradient[i] = std::sin(static_cast<float>(i));

  bool ok = cuda::optimizer_update(delta.data() + shift, momentum.data() + shift, gradient.data() + shift,
                                   clean.data() + shift, clean.data() + shift, step.data(), mean.data(),
                                   scratch.data(), images, elements, 0.8f, 0.05f, nullptr) == Status::ok;
  ok &= cuda::quantize(clean.data() + shift, delta.data() + shift, step.data(), pixels.data() + shift, images, elements,
                       16, nullptr) == Status::ok;
  ok &= cuda::bisect_scale(clean.data() + shift, delta.data() + shift, distance.data(), now.data(), next.data(),
                           tried.data() + shift, images, elements, 0.05f, true, 16, kAffine,
                           nullptr) == Status::ok;
  for (std::int64_t image = 0; image < images; ++image) {
    double sum = 0;
    for (std::int64_t i = 0; i < elements; ++i) sum += std::fabs(gradient[shift + image * elements + i]);
    const double wanted = sum / static_cast<double>(elements);
    if (std::fabs(mean[image] - wanted) > 1e-6 * wanted) {
      std::printf("the mean of image %d is %.9g, not %.9g\n", static_cast<int>(image), mean[image], wanted);
      ok = false;
    }
  }
  return ok;
}

}  // namespace

int main() { return run(2, 3 * 37 * 41, 0) && run(2, 3 * 16 * 20, 1) ? 0 : 1; }
