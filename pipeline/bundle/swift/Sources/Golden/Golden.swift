import CryptoKit
import Foundation

/// Runs the models of a kit on this device and writes results.zip for `mipkd-pipeline collect`.
public func measure(kit: URL, results: URL) async throws {
    let stated = try Data(contentsOf: kit.appendingPathComponent("plan.json"))
    let plan = try JSONDecoder().decode(Plan.self, from: stated)
    var networks: [Network] = []
    for model in plan.models {
        print("loads \(model.package)")
        networks.append(
            try await Network(kit.appendingPathComponent(model.package), units: model.units))
    }
    var heat = [ProcessInfo.processInfo.thermalState]
    var latencies = plan.models.map { _ in [[String: Any]]() }
    for (number, size) in plan.settings.sizes.enumerated() {
        print("times LR \(size[1])x\(size[0])")
        let series = try zip(plan.models, networks).map { model, network in
            let frame = try model.timed[number].map { try Network.input($0, in: kit) }
            return try Series(network, frame: frame, settings: plan.settings)
        }
        while series.contains(where: { !$0.isDone(plan.settings) }) {
            for one in series.shuffled() where !one.isDone(plan.settings) {
                try one.turn(plan.settings)
            }
        }
        for (index, one) in series.enumerated() {
            latencies[index].append(
                one.record(size: size, load: networks[index].loadSeconds, settings: plan.settings))
        }
        heat.append(ProcessInfo.processInfo.thermalState)
    }
    var files: [(name: String, data: Data)] = []
    for (number, model) in plan.models.enumerated() {
        for picture in model.pictures {
            print("runs image \(picture.number) on \(model.package)")
            let pixels = try networks[number].upscale(picture, in: kit)
            let file = npy(pixels, shape: picture.size + [3])
            files.append((name: "outputs/\(number)/\(picture.number).npy", data: file))
        }
    }
    var placements: [String] = []
    for network in networks { placements.append(await network.placement()) }
    let record = try fill(
        template: stated, latencies: latencies, placements: placements, heat: heat, files: files)
    let job = try Data(contentsOf: kit.appendingPathComponent("job.json"))
    files += [
        (name: "results.json", data: record),
        (name: "seal", data: Data(sha256(Data(plan.job.utf8) + record).utf8)),
        (name: "job.json", data: job),
    ]
    try archive(files).write(to: results)
}

/// The plan's records with what was measured.
func fill(
    template: Data, latencies: [[[String: Any]]], placements: [String],
    heat: [ProcessInfo.ThermalState], files: [(name: String, data: Data)]
) throws -> Data {
    let names = ["nominal", "fair", "serious", "critical"]
    let states = heat.map { $0.rawValue < names.count ? names[$0.rawValue] : "unknown" }
    let slowed = heat.contains { $0.rawValue >= ProcessInfo.ThermalState.serious.rawValue }
    let plan = try JSONSerialization.jsonObject(with: template) as! [String: Any]
    var record = plan["results"] as! [String: Any]
    var info = record["info"] as! [String: Any]
    var measurements = record["measurements"] as! [[String: Any]]
    let (host, versions) = describeHost()
    info["host"] = host
    info["versions"] = versions
    for number in measurements.indices {
        measurements[number]["latencies"] = latencies[number]
        measurements[number]["host"] = host
        measurements[number]["versions"] = versions
        measurements[number]["invalid_because"] =
            slowed ? "throttled: the system's thermal state was \(states.joined(separator: ", "))" : ""
        measurements[number]["conditions"] = [
            "thermal state": states.joined(separator: ", "),
            "low power mode": ProcessInfo.processInfo.isLowPowerModeEnabled ? "on" : "off",
            "operations prefer": placements[number],
        ].filter { !$0.value.isEmpty }
    }
    record["info"] = info
    record["measurements"] = measurements
    record["files"] = Dictionary(uniqueKeysWithValues: files.map { ($0.name, sha256($0.data)) })
    return try JSONSerialization.data(withJSONObject: record)
}

/// This device as a host, and the versions that can change a figure.
func describeHost() -> ([String: Any], [String: String]) {
    let process = ProcessInfo.processInfo
    #if os(macOS)
        let system = "macOS"
        let cpu = sysctl("machdep.cpu.brand_string")
    #else
        let system = "iOS"
        let cpu = sysctl("hw.machine")  // such as iPhone16,1
    #endif
    let version = process.operatingSystemVersionString
    let decides = [cpu, "\(process.activeProcessorCount)", "\(process.physicalMemory >> 30)"]
    let id = String(sha256(Data(decides.joined(separator: "\n").utf8)).prefix(12))
    let host: [String: Any] = [
        "id": id, "cpu": cpu, "cores": process.activeProcessorCount,
        "memory_bytes": process.physicalMemory, "system": "\(system) \(version)",
    ]
    return (host, [system.lowercased(): version])
}

func sysctl(_ name: String) -> String {
    var size = 0
    sysctlbyname(name, nil, &size, nil, 0)
    var value = [CChar](repeating: 0, count: max(size, 1))
    sysctlbyname(name, &value, &size, nil, 0)
    return String(cString: value)
}

func sha256(_ data: Data) -> String {
    SHA256.hash(data: data).map { String(format: "%02x", $0) }.joined()
}
