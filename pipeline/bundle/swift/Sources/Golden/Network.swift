import CoreML
import Foundation

/// A model on this device.
final class Network {
    let model: MLModel
    let loadSeconds: Double
    private let compiled: URL
    private let configuration: MLModelConfiguration

    init(_ package: URL, units: String) async throws {
        let known: [String: MLComputeUnits] = [
            "CPU_ONLY": .cpuOnly, "CPU_AND_GPU": .cpuAndGPU, "CPU_AND_NE": .cpuAndNeuralEngine,
        ]
        let wanted = MLModelConfiguration()
        wanted.computeUnits = known[units] ?? .all
        let start = seconds()
        configuration = wanted
        compiled = try await MLModel.compileModel(at: package)
        model = try MLModel(contentsOf: compiled, configuration: wanted)
        loadSeconds = seconds() - start
    }

    /// What the model takes for an image: RGB in 0...1.
    static func input(_ tile: Tile, in kit: URL) throws -> MLFeatureProvider {
        let bytes = try Data(contentsOf: kit.appendingPathComponent(tile.file))
        let lr = MLShapedArray<Float>(scalars: bytes.map { Float($0) / 255 }, shape: tile.shape)
        return try MLDictionaryFeatureProvider(dictionary: ["lr": MLMultiArray(lr)])
    }

    /// The result for it, as 1 x 3 x height x width.
    func run(_ lr: MLFeatureProvider) throws -> MLMultiArray {
        guard let sr = try model.prediction(from: lr).featureValue(for: "sr")?.multiArrayValue else {
            throw CocoaError(.featureUnsupported)
        }
        return sr
    }

    /// A picture in bytes, row by row: its tiles' results, clipped and rounded.
    func upscale(_ picture: Picture, in kit: URL) throws -> [UInt8] {
        let width = picture.size[1]
        var pixels = [UInt8](repeating: 0, count: picture.size[0] * width * 3)
        for tile in picture.tiles {
            let sr = MLShapedArray<Float>(converting: try run(Network.input(tile, in: kit)))
            let (height, across) = (sr.shape[2], sr.shape[3])
            let values = sr.scalars
            for channel in 0..<3 {
                for row in 0..<tile.keep[0] {
                    for column in 0..<tile.keep[1] {
                        let line = channel * height + tile.from[0] + row
                        let value = values[line * across + tile.from[1] + column]
                        let level = (min(max(value, 0), 1) * 255).rounded(.toNearestOrEven)
                        let place = (tile.to[0] + row) * width + tile.to[1] + column
                        pixels[place * 3 + channel] = UInt8(level)
                    }
                }
            }
        }
        return pixels
    }

    /// How many operations Core ML means to run on which unit, where the system tells.
    func placement() async -> String {
        guard #available(macOS 14.4, iOS 17.4, *),
            let plan = try? await MLComputePlan.load(
                contentsOf: compiled, configuration: configuration),
            case .program(let program) = plan.modelStructure,
            let main = program.functions["main"]
        else { return "" }
        var counts: [String: Int] = [:]
        for operation in main.block.operations {
            switch plan.deviceUsage(for: operation)?.preferred {
            case .neuralEngine: counts["Neural Engine", default: 0] += 1
            case .gpu: counts["GPU", default: 0] += 1
            case .cpu: counts["CPU", default: 0] += 1
            default: continue  // a constant
            }
        }
        return counts.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }
            .joined(separator: ", ")
    }
}

func seconds() -> Double {
    Double(DispatchTime.now().uptimeNanoseconds) * 1e-9
}
