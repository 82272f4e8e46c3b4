from lightgen.core.questions import COUNT_WORDS, answer_key, count_of


def test_an_answer_is_the_same_whatever_its_spelling():
    assert answer_key(" Four. ") == answer_key("4") == answer_key("04") == "4"
    assert answer_key("YES") == "yes" and answer_key("hot  Dog") == "hot dog"


def test_numbers_in_words_and_digits():
    assert [count_of(word) for word in COUNT_WORDS] == list(range(21))
    assert [count_of(each) for each in ("21", "021", "many", "²", "", "yes")] == [21, 21, *[None] * 4]
    assert count_of("1" * 5000) is None
