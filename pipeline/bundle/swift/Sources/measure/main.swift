import Foundation
import Golden

let here = URL(fileURLWithPath: FileManager.default.currentDirectoryPath)
let results = here.appendingPathComponent("results.zip")
try await measure(kit: here.appendingPathComponent("kit"), results: results)
print("done: \(results.path)\nbring it back: mipkd-pipeline collect results.zip RUN")
