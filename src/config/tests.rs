use clap::CommandFactory;

use super::*;

const GIB_8: Option<MemoryLimit> = Some(MemoryLimit { bytes: 8 << 30, source: MemoryBound::Ram });

fn read(arguments: &[&str]) -> Result<Config, ConfigError> {
    let flags = Flags::try_parse_from([&["atlaskv"], arguments].concat()).unwrap();
    Config::new(flags, None, GIB_8)
}

fn refusal(arguments: &[&str]) -> String {
    let line = read(arguments).unwrap_err().to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn the_flags_are_well_formed() {
    Flags::command().debug_assert();
}

#[test]
fn every_flag_has_its_variable() {
    for argument in Flags::command().get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        let variable = argument.get_env().unwrap().to_str().unwrap();
        let expected = match long {
            "log-level" => "ATLASKV_LOG".to_string(),
            _ => format!("ATLASKV_{}", long.to_uppercase().replace('-', "_")),
        };
        assert_eq!(variable, expected);
    }
}

#[test]
fn nothing_given_means_the_documented_defaults() {
    let config = read(&[]).unwrap();
    assert_eq!(config.cores, None);
    assert_eq!(config.data_dir, PathBuf::from("./atlaskv-data"));
    assert_eq!(config.listen, "127.0.0.1:7379".parse().unwrap());
    assert_eq!(config.sync, SyncMode::Always);
    assert_eq!(config.memory, 4 << 30);
    assert!(!config.memory_given);
    assert_eq!(config.value_bytes_max, 16 << 20);
    assert_eq!(config.compression, Compression { upper: Codec::None, last: Codec::Lz4 });
    assert_eq!((config.connections_max, config.idle_timeout), (10_000, None));
    assert_eq!(config.stall_timeout, Duration::from_secs(30));
    assert_eq!((config.log_filter.as_str(), config.log_format), ("info", LogFormat::Text));
}

#[test]
fn everything_given_is_taken() {
    let config = read(&[
        "--cores=3",
        "--data-dir=/x",
        "--listen=[::1]:1",
        "--sync=interval=25",
        "--memory=1GB",
        "--max-value-size=512k",
        "--oversubscribe",
        "--compression=zstd",
        "--max-connections=7",
        "--idle-timeout=5m",
        "--stall-timeout=250ms",
        "--log-level=warn,atlaskv=debug",
        "--log-format=json",
    ])
    .unwrap();
    assert_eq!((config.cores, config.oversubscribe), (Some(3), true));
    assert_eq!(config.sync, SyncMode::Interval(Duration::from_millis(25)));
    assert_eq!((config.memory, config.memory_given), (1_000_000_000, true));
    assert_eq!(config.value_bytes_max, 512 << 10);
    assert_eq!(config.compression, Compression { upper: Codec::None, last: Codec::Zstd });
    assert_eq!(config.idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(config.stall_timeout, Duration::from_millis(250));
    assert_eq!((config.log_filter.as_str(), config.log_format), ("warn,atlaskv=debug", LogFormat::Json));
    assert_eq!(read(&["--sync", "none"]).unwrap().sync, SyncMode::None);
    assert_eq!(read(&["--sync", "interval=1ms"]).unwrap().sync, SyncMode::Interval(Duration::from_millis(1)));
    assert!(read(&["--listen", "localhost:0"]).unwrap().listen.ip().is_loopback());
}

#[test]
fn codecs_are_those_of_the_last_level_or_of_those_named() {
    let read = |text: &str| {
        let Compression { upper, last } = read(&["--compression", text]).unwrap().compression;
        (upper.name(), last.name())
    };
    assert_eq!(read("none"), ("none", "none"));
    assert_eq!(read("last=zstd"), ("none", "zstd"));
    assert_eq!(read("upper=lz4"), ("lz4", "lz4"));
    assert_eq!(read("last = zstd, upper = lz4"), ("lz4", "zstd"));
    for wrong in ["snappy", "upper", "middle=lz4", "upper=", "lz4,last=lz4", "zstd,none", "upper=lz4,"] {
        let refused = refusal(&["--compression", wrong]);
        assert!(
            refused.contains(wrong) && refused.contains("for example --compression upper=none,last=zstd")
        );
    }
}

#[test]
fn an_empty_text_counts_as_not_given() {
    let config = read(&["--cores=", "--memory=", "--sync= ", "--data-dir=", "--log-level="]).unwrap();
    assert_eq!((config.cores, config.memory, config.sync), (None, 4 << 30, SyncMode::Always));
    assert_eq!(config.data_dir, PathBuf::from("./atlaskv-data"));
}

#[test]
fn refusals_are_one_line_with_both_figures_and_the_way_out() {
    assert_eq!(refusal(&["--cores", "0"]), "--cores 0 is less than the least possible, 1; raise it");
    assert_eq!(refusal(&["--cores", "2000"]), "--cores 2000 is more than the most possible, 1024; lower it");
    assert_eq!(refusal(&["--cores", "two"]), "--cores two: not a whole number; for example --cores 4");
    assert_eq!(refusal(&["--memory", "lots"]), "--memory lots: not a size; for example --memory 1GiB");
    assert_eq!(
        refusal(&["--memory", "9GiB"]),
        "--memory 9GiB is more than the 8.0GiB this process may use (RAM of this machine); lower it"
    );
    assert_eq!(
        refusal(&["--max-value-size", "33MiB"]),
        "--max-value-size 33MiB is more than the most possible, 32MiB; lower it"
    );
    assert_eq!(
        refusal(&["--max-value-size", "0"]),
        "--max-value-size 0 is less than the least possible, 1 byte; raise it"
    );
    assert_eq!(
        refusal(&["--sync", "interval=0"]),
        "--sync interval=0 is less than the least possible, interval=1; raise it"
    );
    assert_eq!(
        refusal(&["--sync", "interval=90000"]),
        "--sync interval=90000 is more than the most possible, interval=60000; lower it"
    );
    assert_eq!(
        refusal(&["--sync", "sometimes"]),
        "--sync sometimes: not always, interval=<milliseconds> or none; for example --sync interval=50"
    );
    assert_eq!(
        refusal(&["--stall-timeout", "0"]),
        "--stall-timeout 0 is less than the least possible, 100ms; raise it"
    );
    assert!(refusal(&["--idle-timeout", "1000h"]).contains("604800s"));
    assert!(refusal(&["--listen", "7379"]).contains("for example 127.0.0.1:7379"));
    assert!(refusal(&["--log-format", "xml"]).contains("text or json"));
    assert!(refusal(&["--log-level", "inof"]).contains("--log-level inof"));
    assert!(refusal(&["--log-level", "info,a=b=c"]).contains("target=level"));
}

#[test]
fn too_little_memory_for_the_shards_is_refused_with_the_figures() {
    let config = read(&["--memory", "100MiB"]).unwrap();
    assert_eq!(config.shard_memory(1).unwrap().total, 68 << 20);
    assert_eq!(
        config.shard_memory(2).unwrap_err().to_string(),
        "--memory 100MiB is less than the 128MiB that 2 shard(s) with values of up to 16MiB need (32MiB and \
         48MiB a shard); raise it, or lower --cores or --max-value-size"
    );
    let small_values = read(&["--memory", "100MiB", "--max-value-size", "1MiB"]).unwrap();
    assert_eq!(small_values.shard_memory(2).unwrap().total, 34 << 20);
    let derived = Config::new(
        Flags::default(),
        None,
        Some(MemoryLimit { bytes: 128 << 20, source: MemoryBound::Cgroup }),
    )
    .unwrap();
    assert!(derived.shard_memory(2).unwrap_err().to_string().contains("64.0MiB (the default: half of"));
}

#[test]
fn memory_that_is_neither_given_nor_known_is_refused() {
    assert_eq!(Config::new(Flags::default(), None, None).unwrap_err(), ConfigError::MemoryUnknown);
    let flags = Flags { memory: Some("1GiB".to_string()), ..Flags::default() };
    assert_eq!(Config::new(flags, None, None).unwrap().memory, 1 << 30);
}

#[test]
fn the_general_log_variable_is_used_if_it_can_be() {
    let with = |rust_log| Config::new(Flags::default(), Some(rust_log), GIB_8).unwrap().log_filter;
    assert_eq!(with("warn,glommio=off"), "warn,glommio=off");
    assert_eq!(with("a=b=c"), "info");
}
