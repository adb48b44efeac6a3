import Foundation

/// An array of bytes as a file of numpy, format 1.0.
func npy(_ bytes: [UInt8], shape: [Int]) -> Data {
    let sides = shape.map(String.init).joined(separator: ", ")
    var header = "{'descr': '|u1', 'fortran_order': False, 'shape': (\(sides)), }"
    // What is before the bytes is a multiple of 64 long.
    header += String(repeating: " ", count: 63 - (10 + header.utf8.count) % 64) + "\n"
    let length = UInt16(header.utf8.count)
    return Data([0x93]) + Data("NUMPY".utf8) + Data([1, 0]) + little(length) + Data(header.utf8)
        + Data(bytes)
}

/// Files as a zip that compresses nothing.
func archive(_ files: [(name: String, data: Data)]) -> Data {
    var body = Data()
    var directory = Data()
    for (name, data) in files {
        // Version 2.0, no flags, stored, 1 January 1980; sizes; lengths of the name and of no more.
        let facts =
            little(UInt16(20)) + little(UInt16(0)) + little(UInt16(0)) + little(UInt16(0))
            + little(UInt16(33)) + little(crc32(data)) + little(UInt32(data.count))
            + little(UInt32(data.count)) + little(UInt16(name.utf8.count)) + little(UInt16(0))
        directory += little(UInt32(0x0201_4b50)) + little(UInt16(20)) + facts
        directory += Data(count: 10) + little(UInt32(body.count)) + Data(name.utf8)
        body += little(UInt32(0x0403_4b50)) + facts + Data(name.utf8) + data
    }
    let count = little(UInt16(files.count))
    return body + directory + little(UInt32(0x0605_4b50)) + Data(count: 4) + count + count
        + little(UInt32(directory.count)) + little(UInt32(body.count)) + Data(count: 2)
}

private let table: [UInt32] = (0..<256).map { byte in
    (0..<8).reduce(UInt32(byte)) { value, _ in
        value & 1 == 1 ? 0xEDB8_8320 ^ (value >> 1) : value >> 1
    }
}

private func crc32(_ data: Data) -> UInt32 {
    ~data.reduce(~UInt32(0)) { table[Int(($0 ^ UInt32($1)) & 0xFF)] ^ ($0 >> 8) }
}

private func little<T: FixedWidthInteger>(_ value: T) -> Data {
    withUnsafeBytes(of: value.littleEndian) { Data($0) }
}
