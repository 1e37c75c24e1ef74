// SPDX-License-Identifier: MIT
// The flow between two clouds with onnxruntime alone.
//
//   g++ -std=c++17 -O2 -I ORT/include predict_onnx.cpp -L ORT/lib -lonnxruntime -o predict_onnx
//   ./predict_onnx weightnet4.onnx a.f32 b.f32 flow.f32
//
// ORT is an unpacked release of onnxruntime. The clouds are files of float32 x, y, z, ..., in metres, x left, y up,
// z forward, both with the same number of points in random order. The flow has the same layout.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

static std::vector<float> read_floats(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    if (bytes.empty() || bytes.size() % (3 * sizeof(float)) != 0) throw std::runtime_error(path + ": no points");
    const float* first = reinterpret_cast<const float*>(bytes.data());
    return {first, first + bytes.size() / sizeof(float)};
}

int main(int count, char** words) try {
    if (count != 5) throw std::runtime_error("usage: predict_onnx NETWORK PC1 PC2 FLOW");
    std::vector<float> pc1 = read_floats(words[2]), pc2 = read_floats(words[3]);
    if (pc1.size() != pc2.size()) throw std::runtime_error("the clouds differ in their number of points");

    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "bpfn");
    Ort::Session session(environment, words[1], Ort::SessionOptions{});
    Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const std::array<int64_t, 3> shape{1, static_cast<int64_t>(pc1.size() / 3), 3};
    std::array<Ort::Value, 2> inputs{
        Ort::Value::CreateTensor<float>(memory, pc1.data(), pc1.size(), shape.data(), shape.size()),
        Ort::Value::CreateTensor<float>(memory, pc2.data(), pc2.size(), shape.data(), shape.size())};
    const char* names[] = {"pc1", "pc2"};
    const char* results[] = {"flow"};
    auto outputs = session.Run(Ort::RunOptions{nullptr}, names, inputs.data(), inputs.size(), results, 1);

    const float* flow = outputs[0].GetTensorData<float>();
    std::ofstream(words[4], std::ios::binary).write(reinterpret_cast<const char*>(flow), pc1.size() * sizeof(float));
    std::printf("%zu points, flow of the first: %.3f %.3f %.3f m\n", pc1.size() / 3, flow[0], flow[1], flow[2]);
} catch (const std::exception& error) {
    std::fprintf(stderr, "predict_onnx: %s\n", error.what());
    return 1;
}
