// What a decoder computes beside its matrices. There are no plain loops for these: every ISA is compared with scalar.
#include <vector>

#include "cases.h"
#include "pack.h"
#include "rotation.h"

namespace paretobit::test {
namespace {

const size_t kCounts[] = {1, 15, 16, 17, 64, 100, 576};

std::vector<float> numbers(size_t count, Random& random) {
  std::vector<float> x(count);
  for (float& value : x) value = random.spread();
  return x;
}

// Every exponent, both signs, zeros and infinities: 0x00800000 is the smallest normal number.
std::vector<float> every_size(size_t count, Random& random) {
  std::vector<float> x(count);
  for (float& value : x) {
    const auto word = uint32_t(random.next()), bits = (word & 0x7F800000) == 0x7F800000 ? word & 0xFF800000 : word;
    std::memcpy(&value, &bits, 4);
  }
  return x;
}

void report_values(const Report& report, const std::string& name, const std::vector<float>& values) {
  Digest digest;
  digest.add(values);
  report(name, digest);
}

void simple_cases(const Kernels& k, const Report& report) {
  for (const size_t count : kCounts) {
    const std::string size = "/" + std::to_string(count);
    Random random("layers" + size);
    std::vector<float> x = numbers(2 * count, random), y = numbers(2 * count, random), out(count);
    k.rms_norm(x.data(), y.data(), count, 0x1p-20f, out.data());
    report_values(report, "rms_norm" + size, out);
    k.add(x.data(), y.data(), count);
    k.scale(x.data(), 1.1f, count);
    report_values(report, "add, scale" + size, x);
    k.rotate(x.data(), y.data(), y.data() + count, count);
    report_values(report, "rotate" + size, x);
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
      std::vector<float> gates = numbers(count, random);
      k.gate(activation, gates.data(), y.data(), count);
      report_values(report, (activation == Activation::kSilu ? "silu" : "gelu") + size, gates);
    }
    const std::vector<float> wide = every_size(count, random);
    std::vector<uint16_t> halves(count);
    k.to_half(wide.data(), halves.data(), count);
    Digest digest;
    digest.add(halves);
    report("to_half" + size, digest);
  }
}

// Any signs do for the dense factor: what makes it a Hadamard matrix is tested in Python.
void rotation_case(const Kernels& k, size_t width, size_t order, const Report& report) {
  const std::string name = "rotation/" + std::to_string(width) + "/" + std::to_string(order);
  Random random(name);
  const auto signs = [&](size_t count) {
    std::vector<int8_t> found(count);
    for (int8_t& sign : found) sign = random.below(2) ? 1 : -1;
    return found;
  };
  const std::vector<int8_t> own = signs(width), factor = signs(order > 1 ? order * order : 0);
  const OwnedRotation rotation(width, order, {own.data(), own.size()}, {factor.data(), factor.size()});
  const std::vector<float> x = numbers(width, random);
  std::vector<float> out(width);
  k.rotate_inputs(rotation.view(), x.data(), out.data());
  report_values(report, name, out);
  k.unrotate_inputs(rotation.view(), x.data(), out.data());
  report_values(report, name + "/back", out);
}

// A cache of a few blocks, whose queries see windows that begin and end anywhere.
void attend_case(const Kernels& k, size_t head_dim, size_t group, size_t tokens, size_t position, size_t window,
                 const Report& report) {
  const std::string name = "attend/" + std::to_string(head_dim) + "/" + std::to_string(group) + "x" +
                           std::to_string(tokens) + "/" + std::to_string(position) + "/" + std::to_string(window);
  Random random(name);
  const size_t width = padded_head(head_dim), size = kPositions * (head_dim + width);
  std::vector<std::vector<uint16_t>> blocks((position + tokens + kPositions - 1) / kPositions);
  std::vector<const uint16_t*> pointers;
  for (auto& block : blocks) {
    block.resize(size);
    for (uint16_t& half : block) half = uint16_t((random.below(2) << 15) | random.below(0x4400));  // up to 4
    pointers.push_back(block.data());
  }
  const std::vector<float> q = numbers(tokens * group * head_dim, random);
  std::vector<float> out(q.size()), scratch(attend_scratch(head_dim));
  const size_t stride = group * head_dim;
  k.attend({pointers.data(), 0, head_dim, width, group, window, position, q.data(), stride, out.data(), stride,
            scratch.data()},
           0, tokens * group);
  report_values(report, name, out);
}

// Halves of blocks as codes, and queries that meet them; the last token's block and `recent` before it stay halves.
void coded_case(const Kernels& k, Format format, size_t head_dim, size_t group, size_t tokens, bool by_channel,
                size_t window, const Report& report) {
  const std::string name = "coded/" + std::to_string(levels_of(format)) + (by_channel ? "c/" : "/") +
                           std::to_string(head_dim) + "/" + std::to_string(group) + "x" + std::to_string(tokens) + "/" +
                           std::to_string(window);
  Random random(name);
  const Coded coded(format, head_dim, by_channel);
  const size_t n = kPositions, width = padded_head(head_dim), position = 3 * n + 50;
  std::vector<std::vector<uint16_t>> blocks(5, std::vector<uint16_t>(n * (head_dim + width)));
  std::vector<std::vector<uint8_t>> codes(blocks.size(), std::vector<uint8_t>(coded.bytes));
  std::vector<const uint16_t*> halves;
  std::vector<const uint8_t*> pointers;
  std::vector<uint8_t> found(n * head_dim);
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (uint16_t& half : blocks[b]) half = uint16_t((random.below(2) << 15) | random.below(0x4400));  // up to 4
    halves.push_back(blocks[b].data());
    if (b == 0) continue;
    uint8_t* to = codes[b].data();
    const auto part = [&](size_t at) { return reinterpret_cast<uint16_t*>(to + at); };
    for (size_t i = 0; i < head_dim; ++i) part(coded.key_centres)[i] = uint16_t(random.below(0x3C00));
    const std::vector<float> keys = numbers(n * head_dim, random), values = numbers(n * head_dim, random);
    if (by_channel)
      k.round_rows({keys.data(), head_dim, n, coded.levels, part(coded.key_scales), found.data(), 1, head_dim});
    else
      k.round_rows({keys.data(), n, head_dim, coded.levels, part(coded.key_scales), found.data(), head_dim, 1});
    pack(coded.keys, found.data(), to, 1);
    k.round_rows({values.data(), n, head_dim, coded.levels, part(coded.value_scales), found.data(), 1, n});
    pack(coded.values, found.data(), to + coded.value_codes, 1);
    pointers.push_back(to);
    Digest digest;
    digest.add(codes[b]);
    report(name + "/block " + std::to_string(b), digest);
  }
  const std::vector<float> q = numbers(tokens * group * head_dim, random);
  std::vector<float> out(q.size()), room(attend_scratch(head_dim));
  const size_t stride = group * head_dim;
  for (const bool int8 : {true, false}) {
    AttendArgs args{halves.data(), 0, head_dim, width, group, window, position, q.data(), stride, out.data(), stride,
                    room.data()};
    args.coded = &coded, args.codes = pointers.data(), args.recent = 1, args.int8 = int8;
    k.attend(args, 0, tokens * group);
    report_values(report, name + (int8 ? "/int8" : "/float"), out);
  }
}

}  // namespace

void layer_cases(const Kernels& k, const Report& report) {
  simple_cases(k, report);
  for (const size_t width : {1, 15, 24, 48, 128, 512, 2048, 4096}) rotation_case(k, width, 1, report);
  for (const size_t order : {4, 12, 20, 36, 172, 256}) rotation_case(k, order * 16, order, report);
  for (const size_t block : {32, 64, 128, 256}) rotation_case(k, 12 * block, 12, report);
  attend_case(k, 64, 3, 1, 0, 1024, report);
  attend_case(k, 64, 3, 1, 130, 1024, report);
  attend_case(k, 40, 4, 7, 60, 33, report);
  attend_case(k, 16, 1, 64, 100, 500, report);
  attend_case(k, 128, 5, 9, 0, 4, report);
  attend_case(k, 96, 3, 2, 250, 200, report);  // values of a width that is not of whole fours of registers
  attend_case(k, 2, 2, 3, 63, 1, report);
  coded_case(k, Format::k8, 64, 3, 1, false, 1024, report);
  coded_case(k, Format::k4, 64, 3, 20, false, 1024, report);
  coded_case(k, Format::k4, 128, 1, 1, true, 1024, report);
  coded_case(k, Format::k3, 20, 5, 9, true, 90, report);
  coded_case(k, Format::k2, 96, 2, 30, false, 150, report);
}

}  // namespace paretobit::test
