//! Every verb's exact words and exit status, as written in `tests/cmd/*.trycmd`.

#[test]
fn words_and_statuses() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd").timeout(std::time::Duration::from_secs(60));
}
