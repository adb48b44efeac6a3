// swift-tools-version:5.9
import PackageDescription

let package = Package(
    name: "Golden",
    platforms: [.macOS(.v13), .iOS(.v16)],
    products: [.library(name: "Golden", targets: ["Golden"])],
    targets: [
        .target(name: "Golden"),
        .executableTarget(name: "measure", dependencies: ["Golden"]),
    ]
)
