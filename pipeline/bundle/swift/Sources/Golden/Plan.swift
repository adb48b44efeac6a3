import Foundation

/// What a kit asks for: its folder's plan.json. Sizes are height and width.
struct Plan: Decodable {
    let job: String  // id
    let settings: Settings
    let models: [Model]
}

struct Settings: Decodable {
    let sizes: [[Int]]  // LR, that are timed
    let warmup_s, min_time_s, max_time_s, turn_s, max_drift: Double
    let min_warmups, min_samples: Int
}

struct Model: Decodable {
    let package, units: String
    let timed: [[Tile]]  // what a frame of each size is run as
    let pictures: [Picture]  // none of a teacher
}

struct Picture: Decodable {
    let number: Int
    let size: [Int]  // of the result
    let tiles: [Tile]
}

/// An image that a model takes: RGB bytes, one plane a channel; and where its result goes.
struct Tile: Decodable {
    let file: String
    let shape: [Int]  // 1, 3, height, width
    let from, to, keep: [Int]  // row and column in the tile's result, in the picture's; rows, columns
}
