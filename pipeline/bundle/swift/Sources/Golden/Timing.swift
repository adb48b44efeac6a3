import CoreML
import Foundation

/// The calls of one model at one size, raw; as `pipeline/bench/latency.py` takes them.
final class Series {
    private let network: Network
    private let frame: [MLFeatureProvider]
    private var spent = 0.0
    private(set) var samples: [Double] = []
    private(set) var warmups = 0
    let coldStart: Double

    init(_ network: Network, frame: [MLFeatureProvider], settings: Settings) throws {
        self.network = network
        self.frame = frame
        coldStart = try Series.time(network, frame)
        var warm = 0.0
        while warmups < settings.min_warmups || warm < settings.warmup_s {
            warm += try Series.time(network, frame)
            warmups += 1
        }
    }

    func isDone(_ settings: Settings) -> Bool {
        let enough = spent >= settings.min_time_s && samples.count >= settings.min_samples
        return enough || spent >= settings.max_time_s
    }

    /// Calls for a while; the first is not counted: others ran before it.
    func turn(_ settings: Settings) throws {
        _ = try Series.time(network, frame)
        let until = spent + settings.turn_s
        repeat {
            samples.append(try Series.time(network, frame))
            spent += samples.last!
        } while spent < until
    }

    /// Why the samples should not be believed, or "".
    func doubt(_ settings: Settings) -> String {
        if samples.count < 5 { return "\(samples.count) samples, fewer than 5" }
        let third = samples.count / 3
        if third < 3 { return "" }
        let ends = [samples.prefix(third), samples.suffix(third)].map { $0.sorted()[third / 2] }
        let moved = ends.max()! / ends.min()! - 1
        return moved <= settings.max_drift
            ? "" : "unstable: medians of the first and last third are \(Int(moved * 100)) % apart"
    }

    func record(size: [Int], load: Double, settings: Settings) -> [String: Any] {
        [
            "size": size, "samples_s": samples, "warmup": warmups, "cold_start_s": coldStart,
            "load_s": load, "invalid_because": doubt(settings),
        ]
    }

    private static func time(_ network: Network, _ frame: [MLFeatureProvider]) throws -> Double {
        let start = seconds()
        for lr in frame { _ = try network.run(lr) }
        return seconds() - start
    }
}
